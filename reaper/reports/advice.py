"""What a person does next about one lock."""

from typing import Final, NamedTuple

from reaper.core.lock import Lock, Shape
from reaper.core.policy import GONE, Action, Outcome
from reaper.core.verdict import RECOVERY_PENDING, TOO_EARLY, Verdict
from reaper.reports.explain import no_proof_advice
from reaper.reports.records import Found

HELD: Final = "held"
STALE: Final = "stale"
ORPHANED: Final = "orphaned"
ABANDONED: Final = "abandoned"
OVERDUE: Final = "overdue"
WAITS_FOR_THE_GATEWAY: Final = "waits-for-the-gateway"
CANNOT_BE_JUDGED: Final = "cannot-be-judged"
REMOVAL_FAILED: Final = "removal-failed"
REASONS: Final = "reasons"
OTHER_LOCKS: Final = "other-locks"
ANCHORS: Final = frozenset(
    {HELD, STALE, ORPHANED, ABANDONED, OVERDUE, WAITS_FOR_THE_GATEWAY, CANNOT_BE_JUDGED}
    | {REMOVAL_FAILED, REASONS, OTHER_LOCKS}
)
"""All sections of the runbook that the program links to."""

_SECTIONS: Final = {
    Verdict.HELD: HELD,
    Verdict.STALE: STALE,
    Verdict.ORPHANED: ORPHANED,
    Verdict.ABANDONED: ABANDONED,
    Verdict.OVERDUE: OVERDUE,
    Verdict.UNCERTAIN: CANNOT_BE_JUDGED,
}
_NOTHING: Final = "-"


class Advice(NamedTuple):
    """One next step for one lock.

    `text` says the step in words. `command` is a shell command to copy, None where no command
    helps. `runbook` is the anchor of the runbook's section. `brief` is the step in at most 15
    characters, for a table; `-` where there is nothing to do.
    """

    text: str
    command: str | None
    runbook: str
    brief: str


def advice(found: Found, *, state_dir: str | None = None, explained: bool = False) -> Advice:
    """Return the next step for one judged lock.

    The commands name the lock by its session id. They name `state_dir` too, where it is given: a
    command that is copied to another terminal may not find it by itself. `explained`: the person
    has the output of `reaper explain` already, so the step is the one after that.
    """
    commands = _Commands(found.lock, state_dir)
    if found.lock.kind:
        return _other(found, commands)
    done = _by_outcome(found, commands)
    return done or _by_verdict(found, commands, explained=explained)


def _other(found: Found, commands: "_Commands") -> Advice:
    """Return the next step for a lock that is no session lock."""
    judgement, command, brief = found.judgement, None, _NOTHING
    if found.outcome in GONE:
        text = "Nothing to do: the lock is gone."
    elif judgement.verdict is Verdict.HELD:
        text = "Nothing to do: a process uses this lock."
    elif TOO_EARLY in judgement.reasons:
        text = "Look again in a minute: the lock is too new to be judged."
    elif judgement.wants_freeing:
        text = "Nobody needs this lock: this sweep removes it, and others that are surely over."
        command, brief = commands.sweep(found), "sweep"
    else:
        text = (
            "See whether OpenClaw still complains about it. If it does, stop all that is "
            "OpenClaw's, and remove it with `rm`, a directory with `rmdir`."
        )
        brief = "see runbook"
    return Advice(text, command, OTHER_LOCKS, brief)


def _by_outcome(found: Found, commands: "_Commands") -> Advice | None:
    """Return the next step after an attempt to remove the lock; None where there was none."""
    section = _section(found)
    match found.outcome:
        case Outcome.REMOVED | Outcome.VANISHED:
            return Advice("Nothing to do: the lock is gone.", None, section, _NOTHING)
        case Outcome.FAILED:
            text = "Fix what made the removal fail, then try again."
            return Advice(text, commands.unlock(), REMOVAL_FAILED, "unlock")
        case Outcome.CHANGED | Outcome.RESTORED:
            text = "Look again: another lock has this name now."
            return Advice(text, commands.explain(), section, "explain")
        case Outcome.WOULD_REMOVE:
            text = "Nothing was removed, because this is a dry run. A sweep removes the lock."
            return Advice(text, commands.sweep(found), section, "sweep")
        case _:
            return None


def _by_verdict(found: Found, commands: "_Commands", *, explained: bool) -> Advice:
    judgement = found.judgement
    if RECOVERY_PENDING in judgement.reasons:
        return Advice(
            "Start the gateway, or send a message to this session: the gateway then removes the "
            "lock itself. It needs the lock to resume the run.",
            None if explained else commands.explain(),
            WAITS_FOR_THE_GATEWAY,
            "message it",
        )
    match judgement.verdict:
        case Verdict.HELD:
            text = "Nothing to do: a process uses this lock."
            return Advice(text, None if explained else commands.explain(), HELD, _NOTHING)
        case Verdict.UNCERTAIN:
            return _unjudged(found, commands, explained=explained)
        case _ if found.action is Action.REMOVE or not judgement.confirmed:
            waits = "" if judgement.confirmed else " It first makes sure that nothing changes."
            text = f"A sweep removes this lock.{waits}"
            return Advice(text, commands.sweep(found), _section(found), "sweep")
        case Verdict.OVERDUE:
            return _overdue(commands, explained=explained)
        case _:
            text = "The policy only reports such locks. Nobody needs this one: remove it yourself."
            return Advice(text, commands.unlock(), _section(found), "unlock")


def _overdue(commands: "_Commands", *, explained: bool) -> Advice:
    if not explained:
        text = "See whether the run still writes. If it does not, restart the gateway."
        return Advice(text, commands.explain(), OVERDUE, "explain")
    return Advice(
        "Wait while the run still writes. If it does not, restart the gateway. Only if you cannot: "
        "the command removes the lock, and two runs may then write to one transcript.",
        commands.unlock(force=True),
        OVERDUE,
        "restart gateway",
    )


def _unjudged(found: Found, commands: "_Commands", *, explained: bool) -> Advice:
    lock, note = found.lock, found.evidence.proof_note
    if TOO_EARLY in found.judgement.reasons:
        text = "Wait some seconds: the lock is too new to be judged. A sweep waits for it."
        return Advice(text, commands.sweep(found), CANNOT_BE_JUDGED, "wait")
    if lock.record.shape is Shape.UNREAD:
        text = "Look at what has this name. The command removes it, as `rm` would."
        command = commands.unlock(force=True) if explained else commands.explain()
        return Advice(text, command, CANNOT_BE_JUDGED, "explain")
    if note.partition(":")[0] == "no-rights":
        text = (
            f"Run the reaper as uid {lock.uid}, which owns the lock file: nobody else may check it."
        )
        command = f"sudo -u '#{lock.uid}' {commands.explain() or 'reaper list'}"
        return Advice(text, command, CANNOT_BE_JUDGED, f"run as uid {lock.uid}"[:15])
    why = no_proof_advice({lock.uid}, note) if note else "nothing shows whether the file is open"
    text = f"The reaper cannot check this lock: {why}."
    return Advice(text, None if explained else commands.explain(), CANNOT_BE_JUDGED, "explain")


def _section(found: Found) -> str:
    """Return the anchor of the section about the lock's verdict."""
    if RECOVERY_PENDING in found.judgement.reasons:
        return WAITS_FOR_THE_GATEWAY
    return _SECTIONS[found.judgement.verdict]


class _Commands(NamedTuple):
    """The commands about one lock."""

    lock: Lock
    state_dir: str | None

    def explain(self) -> str | None:
        return self._about_lock("explain")

    def unlock(self, *, force: bool = False) -> str | None:
        """Return the command that removes this lock and no other that has its name later."""
        risk = ("--force",) if force else ()
        return self._about_lock("unlock", *risk, "--fingerprint", self.lock.fingerprint)

    def sweep(self, found: Found) -> str | None:
        is_overdue = found.judgement.verdict is Verdict.OVERDUE
        policy = ("--on-overdue", "remove") if is_overdue else ()
        if self.lock.kind:
            policy = ("--on-other", "remove")
        return self._command("sweep", *policy)

    def _about_lock(self, name: str, *options: str) -> str | None:
        session = self.lock.session
        end_of_options = ("--",) if session.startswith("-") else ()
        return self._command(name, *options, *end_of_options, session)

    def _command(self, *words: str) -> str | None:
        """Return the command, None where a name has characters that a terminal cannot show."""
        name, *others = words
        where = () if self.state_dir is None else ("--state-dir", self.state_dir)
        every = ("reaper", name, *where, *others)
        return " ".join(map(_quoted, every)) if all(map(str.isprintable, every)) else None


def _quoted(word: str) -> str:
    from shlex import quote  # noqa: PLC0415  # `list` of an empty directory needs no command

    return quote(word)
