"""What a person should do next about one lock."""

from typing import Final, NamedTuple, assert_never

from reaper.core.evidence import StoreStatus, Unmet
from reaper.core.fast_enum import FastEnum
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
"""All sections of the runbook to which the program links."""

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

    `text` describes the step. `command` is a shell command to copy, None if no command helps.
    `runbook` is the anchor of the runbook's section. `brief` is the step in at most 15 characters,
    for a table; `-` if there is nothing to do.
    """

    text: str
    command: str | None
    runbook: str
    brief: str


class _Command(FastEnum):
    """A command about one lock."""

    EXPLAIN = "explain"
    EXPLAIN_AS_OWNER = "explain, as the lock's uid"
    UNLOCK = "unlock"
    FORCE = "unlock --force"
    SWEEP = "sweep"


class Step(NamedTuple):
    """As `Advice`, but without the text of the command. If `runbook` is None, it is the section
    about the lock's verdict.
    """

    brief: str
    text: str
    command: _Command | None = None
    runbook: str | None = None


def advice(found: Found, *, state_dir: str | None = None, explained: bool = False) -> Advice:
    """Return the next step for one judged lock.

    The commands name the lock by its session id. They also name `state_dir`, if it is given,
    because a command in another terminal may not find it by itself. `explained`: the person has
    already seen the output of `reaper explain`, so return the step after that.
    """
    step = next_step(found, explained=explained)
    command = None
    if step.command is not None:
        command = _Commands(found.lock, state_dir).of(step.command, found.judgement.verdict)
    runbook = _section(found) if step.runbook is None else step.runbook
    return Advice(step.text, command, runbook, step.brief)


_GONE: Final = Step(_NOTHING, "Nothing to do: the lock is gone.")
_LOOK_AGAIN: Final = Step(
    "explain", "Look again: another lock has this name now.", _Command.EXPLAIN
)
_AFTER: Final[dict[Outcome | None, Step]] = {
    Outcome.REMOVED: _GONE,
    Outcome.VANISHED: _GONE,
    Outcome.CHANGED: _LOOK_AGAIN,
    Outcome.RESTORED: _LOOK_AGAIN,
    Outcome.FAILED: Step(
        "unlock",
        "Fix what made the removal fail, then try again.",
        _Command.UNLOCK,
        REMOVAL_FAILED,
    ),
    Outcome.WOULD_REMOVE: Step(
        "sweep",
        "Nothing was removed, because this is a dry run. A sweep removes the lock.",
        _Command.SWEEP,
    ),
}
"""The next step after an attempt to remove a session lock."""


def next_step(found: Found, *, explained: bool = False) -> Step:
    """Return the step without the text of its command, which a large table does not need."""
    if found.lock.kind:
        return _other(found)
    return _AFTER.get(found.outcome) or _by_verdict(found, explained=explained)


def _other(found: Found) -> Step:
    """Return the next step for a lock that is not a session lock."""
    judgement, command, brief = found.judgement, None, _NOTHING
    if found.outcome in GONE:
        text = "Nothing to do: the lock is gone."
    elif judgement.verdict is Verdict.HELD:
        text = "Nothing to do: a process uses this lock."
    elif TOO_EARLY in judgement.reasons:
        text = "Look again in a minute: the lock is too new to be judged."
    elif judgement.is_stuck:
        text = "Nobody needs this lock: the command removes it and others that are surely over."
        command, brief = _Command.SWEEP, "sweep"
    else:
        text = (
            "See whether OpenClaw still complains about it. If it does, stop all that is "
            "OpenClaw's, and remove it with `rm`, a directory with `rmdir`."
        )
        brief = "see runbook"
    return Step(brief, text, command, OTHER_LOCKS)


def _by_verdict(found: Found, *, explained: bool) -> Step:
    judgement = found.judgement
    explain = None if explained else _Command.EXPLAIN
    if RECOVERY_PENDING in judgement.reasons:
        return _recovery(found.evidence.run.store, explain)
    match judgement.verdict:
        case Verdict.HELD:
            return Step(_NOTHING, "Nothing to do: a process uses this lock.", explain)
        case Verdict.UNCERTAIN:
            return _unjudged(found, explained=explained)
        case _ if found.action is Action.REMOVE or judgement.unmet is Unmet.SEEN_ONCE:
            waits = "" if judgement.confirmed else " It first makes sure that nothing changes."
            return Step("sweep", f"A sweep removes this lock.{waits}", _Command.SWEEP)
        case Verdict.OVERDUE:
            return _overdue(explained=explained)
        case _:
            text = "The policy only reports such locks. Nobody needs this one: remove it yourself."
            return Step("unlock", text, _Command.UNLOCK)


def _recovery(store: StoreStatus, explain: _Command | None) -> Step:
    if store is StoreStatus.UNKNOWN:
        text = (
            "Repair sessions.json, which the reaper cannot read or understand. It may say that the "
            "gateway needs this lock to resume a run."
        )
        return Step("explain", text, explain)
    return Step(
        "send a message",
        "Start the gateway, or send a message to this session: the gateway then removes the lock "
        "itself. It needs the lock to resume the run.",
        explain,
    )


def _overdue(*, explained: bool) -> Step:
    if not explained:
        text = "See whether the run still writes. If it does not, restart the gateway."
        return Step("explain", text, _Command.EXPLAIN)
    return Step(
        "restart gateway",
        "Wait while the run still writes. If it does not, restart the gateway. Only if you cannot: "
        "the command removes the lock, and two runs may then write to one transcript.",
        _Command.FORCE,
    )


def _unjudged(found: Found, *, explained: bool) -> Step:
    lock, note = found.lock, found.evidence.proof_note
    explain = None if explained else _Command.EXPLAIN
    if TOO_EARLY in found.judgement.reasons:
        text = "Wait some seconds: the lock is too new to be judged. A sweep waits for it."
        return Step("wait", text, _Command.SWEEP)
    if lock.record.shape is Shape.UNREAD:
        text = "Look at what has this name."
        if explained:
            text += " The command removes it, as `rm` would."
        return Step("explain", text, explain or _Command.FORCE)
    if note.partition(":")[0] == "no-rights":
        text = (
            f"Run the reaper as uid {lock.uid}, which owns the lock file, or with the capability "
            "CAP_LEASE."
        )
        return Step("run as owner", text, _Command.EXPLAIN_AS_OWNER)
    why = no_proof_advice({lock.uid}, note) if note else "nothing shows whether the file is open"
    return Step("explain", f"The reaper cannot check this lock: {why}.", explain)


def _section(found: Found) -> str:
    """Return the anchor of the section about the lock's verdict."""
    if RECOVERY_PENDING in found.judgement.reasons:
        return WAITS_FOR_THE_GATEWAY
    return _SECTIONS[found.judgement.verdict]


class _Commands(NamedTuple):
    """The commands about one lock."""

    lock: Lock
    state_dir: str | None

    def of(self, command: _Command, verdict: Verdict) -> str | None:
        """Return one of them. If a name has characters that a terminal cannot show, return None;
        for EXPLAIN_AS_OWNER, a command without names.
        """
        match command:
            case _Command.SWEEP:
                policy = "--on-other" if self.lock.kind else "--on-overdue"
                needs_it = self.lock.kind or verdict is Verdict.OVERDUE
                return self._command("sweep", *((policy, "remove") if needs_it else ()))
            case _Command.EXPLAIN:
                return self._about_lock("explain")
            case _Command.EXPLAIN_AS_OWNER:
                explain = self._about_lock("explain") or "reaper list"
                return f"sudo -u '#{self.lock.uid}' {explain}"
            case _Command.UNLOCK | _Command.FORCE:
                # The fingerprint means this lock, and no other that gets its name later.
                risk = ("--force",) if command is _Command.FORCE else ()
                return self._about_lock("unlock", *risk, "--fingerprint", self.lock.fingerprint)
        assert_never(command)

    def _about_lock(self, name: str, *options: str) -> str | None:
        session = self.lock.session
        end_of_options = ("--",) if session.startswith("-") else ()
        return self._command(name, *options, *end_of_options, session)

    def _command(self, *words: str) -> str | None:
        from shlex import join  # noqa: PLC0415  # a table builds no command

        name, *others = words
        where = () if self.state_dir is None else ("--state-dir", self.state_dir)
        every = ("reaper", name, *where, *others)
        return join(every) if all(map(str.isprintable, every)) else None
