"""Evidence as text, for people. Names go through `printable`."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from reaper.core.evidence import (
    Evidence,
    Holder,
    HolderState,
    HoldProof,
    Program,
    Run,
    RunState,
    StoreStatus,
)
from reaper.core.file_systems import SHARED
from reaper.core.lock import Lock, Shape, iso
from reaper.core.policy import Action
from reaper.core.text import printable
from reaper.core.verdict import RECOVERY_PENDING, Judgement, Limits, Verdict

if TYPE_CHECKING:
    from reaper.reports.records import Found


def duration(seconds: float) -> str:
    """Return a length of time for people: 0.4s, 12s, 3m 05s, 2h 10m, 4d 3h."""
    whole = int(seconds)
    if seconds < 10:  # noqa: PLR2004  # below that, tenths matter
        return f"{seconds:.1f}s"
    if whole < 60:  # noqa: PLR2004  # units of time from here on
        return f"{whole}s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86_400:  # noqa: PLR2004
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"


def evidence_lines(found: "Found", limits: Limits) -> list[str]:
    """Return what was found out about one lock, the verdict, and what a sweep does."""
    lock, evidence, judgement = found.lock, found.evidence, found.judgement
    reasons = f" ({', '.join(judgement.reasons)})" if judgement.reasons else ""
    key = evidence.run.session_key
    lines = [
        *([("kind", lock.kind)] if lock.kind else []),
        *([("session key", printable(key))] if key else []),
        ("lock file", _record(lock)),
        ("fingerprint", lock.fingerprint),
        ("age", f"{duration(evidence.age)}, by {_age_source(evidence)}"),
        ("file open?", _hold_proof(evidence)),
        ("process", whose(evidence)),
        *(() if lock.kind else _run(evidence)),
        ("verdict", f"{judgement.verdict.value.upper()}{reasons}"),
        ("rule", RULES[judgement.row]),
        ("a sweep", next_step(judgement, found.action, limits)),
    ]
    return [printable(lock.path), *(line(name, text) for name, text in lines)]


def line(name: str, text: str) -> str:
    """Return one line of the output of `reaper explain`."""
    return f"  {name:<13} {text}"


_PROOF: Final = {
    HoldProof.OPEN: "yes: a process has the lock file open for writing",
    HoldProof.NOT_OPEN: "no: no process has the lock file open for writing",
    HoldProof.UNAVAILABLE: "cannot be checked",
}


def _hold_proof(evidence: Evidence) -> str:
    why = why_no_proof(evidence.proof_note, f"uid {evidence.lock.uid}")
    return _PROOF[evidence.proof] + (f": {why}" if why else "")


def why_no_proof(note: str, owner: str) -> str:
    """Return why there is no hold proof, "" if the evidence gives no reason. `owner` is the lock
    file's.
    """
    reason, _, detail = note.partition(":")
    match reason:
        case "no-rights":
            return f"the file belongs to {owner}, and the reaper has no right to check it"
        case "file-system":
            return _untrusted_file_system(detail)
        case "no-leases":
            return _no_leases(detail)
        case _:
            return _NOTES.get(reason, reason)


_NOTES: Final = {
    "other-layer": "an overlay is mounted there: a process may have the file open through another "
    "layer",
    "too-early": "the file is empty and new, and its creator may be about to open it",
    "unreadable": "the file cannot be opened",
    "symlink": "it is a symlink, which is not followed",
    "not-regular": "it is not a regular file",
    "directory": "it is a directory",
}


def _untrusted_file_system(name: str) -> str:
    if name in SHARED:
        return f"this type of file system ({name}) does not show who has a file open elsewhere"
    named = f" ({name})" if name else ""
    return (
        f"the check was never tested on this type of file system{named}, so nothing there counts "
        "as not open"
    )


def _no_leases(refused_by: str) -> str:
    match refused_by:
        case "sysctl":
            return "leases are switched off on this machine (sysctl fs.leases-enable is 0)"
        case "system":
            return "this kernel or sandbox has no leases (gVisor, for one, has none)"
        case _:
            return (
                f"the file system ({refused_by}), or a sandbox such as gVisor, refuses leases, "
                "although sysctl fs.leases-enable is not 0"
            )


def why_kept(evidence: Evidence, judgement: Judgement) -> str:
    """Return in one sentence why nothing shows that a lock may be removed."""
    if RECOVERY_PENDING in judgement.reasons:
        return (
            "sessions.json does not say that its run is over, and the gateway may need this lock "
            "to resume it"
        )
    if evidence.lock.record.shape is Shape.UNREAD:
        return "it cannot be read, so nothing proves that it is not in use"
    pid = evidence.lock.record.pid
    who = "a process" if pid is None else f"pid {pid}"
    match judgement.verdict:
        case Verdict.HELD | Verdict.OVERDUE if evidence.proof is HoldProof.OPEN:
            over = ", longer than its limit," if judgement.verdict is Verdict.OVERDUE else ""
            return f"{who} holds this lock{over} and its run may still be working"
        case Verdict.HELD | Verdict.OVERDUE:
            return f"{who} is alive and its run may still be working"
        case Verdict.UNCERTAIN:
            return "nothing proves that it is not in use"
        case _:
            return "it was not removed"


def _uid(uid: int) -> str:
    return f"uid {uid}"


def no_proof_advice(
    uids: set[int], note: str, *, stray: bool = False, name: Callable[[int], str] = _uid
) -> str:
    """Return one line that says what to do about locks that cannot be judged.

    `uids` own the lock files. `stray`: the folders belong to other uids. `name` returns a uid's
    name.
    """
    owners = " and ".join(name(uid) for uid in sorted(uids))
    reason, _, detail = note.partition(":")
    if reason == "no-rights":
        run_as = f"run the reaper as {owners}" + (", one for each" if len(uids) > 1 else "")
        if not stray:
            return f"no right to check the lock files of {owners}: {run_as}"
        return (
            f"no right to check the lock files of {owners} in a folder of another uid (a command "
            f"that ran as the wrong user leaves such files): {run_as}, give them to the folder's "
            "owner with chown, or remove each with `reaper unlock --force`"
        )
    why = why_no_proof(note, owners)
    match reason:
        case "file-system" if detail in SHARED:
            why += (
                f": run the reaper on the machine that has the disk, or keep sessions on {_TRIED}"
            )
        case "file-system":
            why += f": keep sessions on {_TRIED}"
        case "no-leases" if detail == "sysctl":
            why += ": set it to 1"
        case "no-leases":
            why += f": run gateway and reaper where there are leases, with sessions on {_TRIED}"
    return why


_TRIED: Final = "a local ext4, xfs, btrfs, f2fs or tmpfs"


def _record(lock: Lock) -> str:
    record = lock.record
    if record.shape is Shape.UNREAD:
        return "not read"
    if record.shape is Shape.GUARD:
        return "a directory that is not empty" if lock.data else "an empty directory"
    if record.shape is not Shape.RECORD:
        return f"{record.shape.value} ({len(lock.data)} bytes read)"
    fields = {
        "pid": record.pid,
        "createdAt": None if record.created_at_ms is None else iso(record.created_at_ms),
        "maxHoldMs": record.max_hold_ms,
        "starttime": record.starttime,
    }
    if lock.kind:
        del fields["maxHoldMs"]
    return ", ".join(f"{name} {'-' if field is None else field}" for name, field in fields.items())


def _age_source(evidence: Evidence) -> str:
    # Without a createdAt, and with one in the future, both ages are the file's.
    is_by_file = evidence.age == evidence.file_age
    return "the time of the file" if is_by_file else "createdAt"


def whose(evidence: Evidence) -> str:  # noqa: PLR0911  # one sentence for each state
    """Return in one sentence who holds the lock, by the process table."""
    pid = evidence.lock.record.pid
    holder = evidence.holder
    if evidence.lock.record.shape is Shape.UNREAD:
        return "not known: the lock file was not read"
    if evidence.lock.record.shape is Shape.GUARD:
        return "not known: a guard names nobody"
    match holder.state:
        case HolderState.SAME:
            return _alive(holder, evidence.lock)
        case HolderState.GONE:
            return f"pid {pid} does not exist here"
        case HolderState.ZOMBIE:
            return f"pid {pid} is dead; its parent process has not collected it yet"
        case HolderState.REUSED:
            return f"pid {pid} is another process now: it started at another time"
        case HolderState.FOREIGN_PROGRAM:
            return f"pid {pid} is not a program of OpenClaw, and the lock has no start time"
        case HolderState.UNKNOWN:
            return (
                f"it is not known whether pid {pid} is alive: the reaper cannot look at it, or at "
                "a process in another PID namespace"
            )
        case HolderState.UNNAMED:
            return "the lock file names no process"


def _alive(holder: Holder, lock: Lock) -> str:
    pid, starttime = lock.record.pid, lock.record.starttime
    elsewhere = "" if holder.pid in {None, pid} else f", which is pid {holder.pid} here"
    up = "" if holder.up_for is None else f", up for {duration(holder.up_for)}"
    program = f"({_PROGRAMS[holder.program]}{up})"
    if starttime is not None:
        return f"pid {pid}{elsewhere} is alive and took the lock {program}"
    return (
        f"pid {pid}{elsewhere} is alive {program}; the lock has no start time, so another process "
        "may have had that pid"
    )


_PROGRAMS: Final = {
    Program.GATEWAY: "a gateway",
    Program.AGENT: "an OpenClaw program that is not the gateway",
    Program.OTHER: "not a program of OpenClaw",
    Program.UNKNOWN: "program not known",
}


def _run(evidence: Evidence) -> Iterator[tuple[str, str]]:
    run = evidence.run
    if evidence.proof is not HoldProof.NOT_OPEN:
        yield from _trajectory(run)
    match run.store:
        case StoreStatus.RUNNING:
            yield "sessions.json", "the run has not ended"
        case StoreStatus.ENDED:
            ended = "" if run.store_ended_ms is None else f" at {iso(run.store_ended_ms)}"
            yield "sessions.json", f"the last run ended{ended}"
        case StoreStatus.NONE:
            yield "sessions.json", "no status for this session"
        case StoreStatus.UNKNOWN:
            yield "sessions.json", "cannot be read or understood"
    quiet = evidence.quiet_for
    yield "last write", "not known" if quiet is None else f"{duration(quiet)} ago"


def _trajectory(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what counts only while a process may have the lock open."""
    match run.trajectory:
        case RunState.ENDED if run.end is not None:
            how = "aborted, or timed out in a tool"
            how = how if run.end.cut_short else "completed, or timed out at the model"
            yield "trajectory", f"the last run ended at {iso(run.end.at_ms)}: {how}"
        case RunState.RUNNING:
            yield "trajectory", "the run has not ended: the last record is not session.ended"
        case _:
            yield "trajectory", "not known: it is missing, unreadable or not complete"
    if run.checkpoint_ms is not None:
        yield "checkpoint", f"the newest is of {iso(run.checkpoint_ms)}"


RULES: Final = {
    1: "a process has the file open, but its run was cut short, and nothing was written since",
    2: "held longer than the limit in the lock file, or than 30 minutes if the file has none",
    3: "a process has the file open",
    4: "no process has the file open, but the gateway may need the lock to resume the run",
    5: "the process is gone, and no process has the file open",
    6: "the lock file names no process, and no process has it open",
    7: "the process closed the lock file, but did not delete it",
    8: "it cannot be checked whether the file is open, but its process was seen alive, then dead",
    9: "it cannot be checked whether the file is open; its process is alive",
    10: "it cannot be checked whether the file is open; a missing pid proves nothing (the process "
    "may be in another container)",
    11: "too early to judge",
    12: "a process has the file open",
    13: "the process that it names is certainly gone",
    14: "it names no process, and no process has it open, as a holder of such a lock would",
    15: "no process has the file open, as a holder of such a lock would",
    16: "a guard that is empty and older than every process that can have made it",
    17: "nothing proves that it is over; it may be in use",
}


def next_step(judgement: Judgement, action: Action, limits: Limits) -> str:
    """Return what a sweep does with the lock: `removes it`, and so on."""
    if RECOVERY_PENDING in judgement.reasons:
        return "keeps it; a gateway removes it when it starts, or at the next message"
    match action:
        case Action.KEEP:
            return "keeps it"
        case Action.FLAG:
            return "reports it and does not remove it"
        case Action.REMOVE if not judgement.confirmed:
            is_abandoned = judgement.verdict is Verdict.ABANDONED
            grace = limits.confirm if is_abandoned else limits.orphan_grace
            return f"removes it, after it has not changed for {duration(grace)}"
        case Action.REMOVE:
            return "removes it"
