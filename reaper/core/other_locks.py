"""The locks of OpenClaw that are not session locks: where they are, and when one is surely over.

Pure. `PLACES` has every place that is looked at: a folder and a name, never a tree to search.
"""

from typing import Final, NamedTuple

from reaper.core.evidence import Evidence, HolderState, HoldProof, Unmet
from reaper.core.lock import Shape
from reaper.core.verdict import (
    DEAD_PID,
    HOLDER_UNKNOWN,
    MISSING_PID,
    NO_DESCRIPTOR,
    NO_HOLD_PROOF,
    NON_OPENCLAW_OWNER,
    NOT_EMPTY,
    OLDER_PROCESS,
    ORPHAN_SELF_PID,
    PIDS_NOT_SEEN,
    RECLAIM_GUARD,
    RECYCLED_PID,
    SEEN_ONCE,
    TOO_EARLY,
    Judgement,
    Limits,
    Verdict,
)

GUARD_SUFFIX: Final = ".reclaim"
GUARD: Final = RECLAIM_GUARD
"""The kind of a directory that exists while a process takes a stale lock over; it is empty."""
START_MARGIN_MS: Final = 10_000
"""How much later than a lock a process must have begun so that it cannot be the holder. The two
times are read off different clocks of the kernel, which agree to some hundredths of a second."""


class Place(NamedTuple):
    """Where OpenClaw keeps locks of one kind, below a state directory.

    `folder` are path components; a `*` in one stands for any text, as in `name`. `versions` are
    those that were examined, `held_for` is how long a healthy lock is held. `keeps_descriptor`:
    each holder has the file open for writing until it releases; False if that is not known.
    """

    kind: str
    folder: tuple[str, ...]
    name: str
    versions: str
    held_for: str
    keeps_descriptor: bool


_AGENT: Final = ("agents", "*", "agent")
_SESSIONS: Final = ("agents", "*", "sessions")

PLACES: Final = (
    # Taken by `acquireAuthStoreLockSync` too, which writes, closes, and holds without a descriptor.
    Place("auth-profiles", _AGENT, "auth-profiles.json.lock", "2.26-5.28", "ms", False),
    Place("provider-auth", _AGENT, "openclaw-agent.sqlite.lock", "8.1-9.6", "to 2 min", True),
    Place("oauth-refresh", ("locks", "oauth-refresh"), "*.lock", "5.22-9.6", "to 2 min", True),
    Place("config", (), "openclaw.json.lock", "5.22-9.6", "ms", True),
    Place("pairing", ("credentials",), "*.json.lock", "2.26-5.28", "ms", True),
    Place("acp-ledger", ("acp",), "event-ledger.json.lock", "5.22", "ms", True),
    Place("memory-index", ("qmd",), "embed.lock.lock", "5.22-9.6", "a whole embedding", True),
    Place("sandbox", ("sandbox",), "*.json.lock", "5.22", "ms", True),
    Place("sandbox", ("sandbox", "containers"), "*.json.lock", "5.22", "ms", True),
    Place("sandbox", ("sandbox", "browsers"), "*.json.lock", "5.22", "ms", True),
    Place("sandbox", ("state",), "openclaw.sqlite.sandbox-*.lock", "8.1-9.6", "ms", True),
    # Made complete by link(2), from a file that is closed.
    Place("usage-cost", _SESSIONS, ".usage-cost-cache.json.lock", "5.22", "s", False),
    Place(
        "sqlite-transcript",
        (*_SESSIONS, "session-locks"),
        "*.sqlite-transcript.lock",
        "7.2-beta.1-4",
        "a whole run",
        True,
    ),
    # Reported for 7.2-beta.3. Nobody has examined that version.
    Place("exec-approvals", (), "exec-approvals.json.lock", "7.2-beta.3", "ms", False),
    Place("gateway", ("tmp", "openclaw-*"), "gateway.*.lock", "9.6", "a gateway's life", True),
)
IN_SESSIONS: Final = tuple(place for place in PLACES if place.folder == _SESSIONS)
"""Those in the folder that session locks are in too."""
KINDS: Final = (*dict.fromkeys(place.kind for place in PLACES), GUARD)


def place_of(name: str, places: tuple[Place, ...]) -> tuple[Place, str] | None:
    """Return the place whose lock or guard has this name, and its kind; None if none has."""
    lock = name.removesuffix(GUARD_SUFFIX)
    for place in places:
        if fits(place.name, lock):
            return place, place.kind if lock == name else GUARD
    return None


def fits(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern in which one `*` may stand for any text."""
    head, star, tail = pattern.partition("*")
    if not star:
        return name == pattern
    return len(name) >= len(head + tail) and name.startswith(head) and name.endswith(tail)


class Suspects(NamedTuple):
    """The processes that may hold a lock: those that have the pid of its record now; for a guard,
    OpenClaw's and node's.

    `all_seen`: the holder is among them. False if its pid may be one of another PID namespace, if
    processes are hidden, or if another machine can reach the file. `oldest_began_ms` (epoch) is
    when the oldest of them began, None if there are none.
    """

    all_seen: bool = False
    oldest_began_ms: int | None = None


def judge_other(evidence: Evidence, place: Place, suspects: Suspects, limits: Limits) -> Judgement:
    """Return what follows from the evidence; the first row that fits counts.

        file open                     and                                            verdict
    12  yes                                                                          HELD
    13  not seen                      its holder is certainly gone                   STALE
    14  no, and holders keep it open  it names no process, and is old                STALE
    15  no, and holders keep it open  anything else, seen so for the orphan grace    ORPHANED
    16  a guard                       empty, old, older than each possible maker     STALE
    17                                anything else                                  UNCERTAIN

    In row 17 it is HELD if the very process that it names is alive, by its start time.
    """
    if evidence.proof is HoldProof.OPEN:
        return Judgement(Verdict.HELD, (), 12, unmet=Unmet.IN_USE)
    if evidence.lock.record.shape is Shape.GUARD:
        return _judge_guard(evidence, suspects, limits)
    by_descriptor = place.keeps_descriptor and evidence.proof is HoldProof.NOT_OPEN
    is_old = evidence.file_age >= limits.other_grace
    gone = _is_over(evidence, suspects)
    if gone is not None and (by_descriptor or is_old):
        return Judgement(Verdict.STALE, (gone,), 13)
    if by_descriptor and evidence.holder.state is not HolderState.UNNAMED:
        return _judge_not_open(evidence, limits)
    if by_descriptor and is_old:
        shape = evidence.lock.record.shape
        reasons = (MISSING_PID,) if shape is Shape.RECORD else (MISSING_PID, shape.value)
        return Judgement(Verdict.STALE, reasons, 14)
    return _judge_unproven(evidence, place, limits)


def _judge_unproven(evidence: Evidence, place: Place, limits: Limits) -> Judgement:
    """Row 17."""
    if evidence.holder.state is HolderState.SAME and evidence.lock.record.starttime is not None:
        return Judgement(Verdict.HELD, (), 17, unmet=Unmet.IN_USE)
    if evidence.file_age < limits.other_grace:
        return _too_early(limits.other_grace - evidence.file_age)
    if not place.keeps_descriptor:
        unmet = Unmet.HOLDER_UNCLEAR
        return Judgement(Verdict.UNCERTAIN, (NO_DESCRIPTOR,), 17, unmet=unmet)
    note, _, _ = evidence.proof_note.partition(":")
    reasons = (NO_HOLD_PROOF, note) if note else (NO_HOLD_PROOF,)
    return Judgement(Verdict.UNCERTAIN, reasons, 17, unmet=Unmet.NO_HOLD_PROOF)


def _is_over(evidence: Evidence, suspects: Suspects) -> str | None:
    """Return why the process that the lock names is certainly gone, None if it may live."""
    record = evidence.lock.record
    if record.pid is None or not suspects.all_seen:
        return None
    if record.starttime is not None:
        return _OVER.get(evidence.holder.state)
    if not _all_younger(evidence, suspects):
        return None
    return DEAD_PID if suspects.oldest_began_ms is None else RECYCLED_PID


_OVER: Final = {
    HolderState.GONE: DEAD_PID,
    HolderState.ZOMBIE: DEAD_PID,
    HolderState.REUSED: RECYCLED_PID,
}


def _all_younger(evidence: Evidence, suspects: Suspects) -> bool:
    """Whether all that may hold the lock began after it was last written, by its ctime, which only
    the kernel sets.
    """
    began_ms = suspects.oldest_began_ms
    written_ms = evidence.lock.ctime_ns // 1_000_000
    return began_ms is None or began_ms > written_ms + START_MARGIN_MS


def _judge_not_open(evidence: Evidence, limits: Limits) -> Judgement:
    """Row 15. A release closes the file just before it unlinks it."""
    wait = limits.orphan_grace - evidence.seen_for
    match evidence.holder.state:
        case HolderState.SAME:
            reason = ORPHAN_SELF_PID
        case HolderState.FOREIGN_PROGRAM:
            reason = NON_OPENCLAW_OWNER
        case _:
            reason = HOLDER_UNKNOWN
    if wait <= 0:
        return Judgement(Verdict.ORPHANED, (reason,), 15)
    if limits.seen_once_suffices:
        seen_once = (reason, SEEN_ONCE)
        return Judgement(
            Verdict.ORPHANED, seen_once, 15, confirmed=False, due_in=wait, unmet=Unmet.SEEN_ONCE
        )
    return _too_early(wait)._replace(pending=True)


def _judge_guard(evidence: Evidence, suspects: Suspects, limits: Limits) -> Judgement:
    """Row 16. A guard names no process: its maker must have begun before it."""
    if evidence.lock.data:
        return Judgement(Verdict.UNCERTAIN, (NOT_EMPTY,), 17, unmet=Unmet.HOLDER_UNCLEAR)
    if evidence.file_age < limits.other_grace:
        return _too_early(limits.other_grace - evidence.file_age)
    if not suspects.all_seen:
        reason = PIDS_NOT_SEEN
    elif not _all_younger(evidence, suspects):
        reason = OLDER_PROCESS
    else:
        return Judgement(Verdict.STALE, (RECLAIM_GUARD,), 16)
    return Judgement(Verdict.UNCERTAIN, (reason,), 17, unmet=Unmet.HOLDER_UNCLEAR)


def _too_early(wait: float) -> Judgement:
    return Judgement(Verdict.UNCERTAIN, (TOO_EARLY,), 17, due_in=wait, unmet=Unmet.TOO_EARLY)
