"""Evidence in words, for people. Names go through `printable`."""

from collections.abc import Callable
from typing import Final

from reaper.core.evidence import (
    Evidence,
    HolderState,
    HoldProof,
    RunState,
    StoreStatus,
    Unmet,
)
from reaper.core.file_systems import SHARED
from reaper.core.lock import Lock, Shape, iso
from reaper.core.policy import Action
from reaper.core.text import printable
from reaper.core.verdict import RECOVERY_PENDING, Judgement, Limits, Verdict


def duration(seconds: float) -> str:
    """Return a length of time as people read it: 0.4s, 12s, 3m 05s, 2h 10m, 4d 3h."""
    whole = int(seconds)
    if seconds < 10:  # noqa: PLR2004  # below that, tenths tell something
        return f"{seconds:.1f}s"
    if whole < 60:  # noqa: PLR2004  # units of time from here on
        return f"{whole}s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86_400:  # noqa: PLR2004
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"


def explain(evidence: Evidence, judgement: Judgement, action: Action, limits: Limits) -> list[str]:
    """Return the whole evidence for one lock, the rule that applied, and what follows."""
    lock = evidence.lock
    return [
        printable(lock.path),
        f"  record      {_record(lock)}",
        f"  fingerprint {lock.fingerprint}",
        f"  age         {duration(evidence.age)}, counted from {_age_source(lock)}",
        f"  hold proof  {_hold_proof(evidence)}",
        f"  holder      {whose(evidence)}",
        *(f"  {line}" for line in _run(evidence)),
        f"  verdict     {judgement.verdict.value.upper()}"
        + (f" ({', '.join(judgement.reasons)})" if judgement.reasons else ""),
        f"  rule        {judgement.row}: {RULES[judgement.row]}",
        *(f"  not freed   {line}" for line in not_freed_because(evidence, judgement)),
        f"  a sweep     {next_step(judgement, action, limits)}",
    ]


_PROOF: Final = {
    HoldProof.OPEN: "some process has the lock file open for writing: it is held",
    HoldProof.NOT_OPEN: "no process has the lock file open for writing: nobody holds it",
    HoldProof.UNAVAILABLE: "none available",
}


def _hold_proof(evidence: Evidence) -> str:
    why = _why_no_proof(evidence.proof_note, f"uid {evidence.lock.uid}")
    return _PROOF[evidence.proof] + (f": {why}" if why else "")


def _why_no_proof(note: str, owner: str) -> str:
    """Return why there is no hold proof, "" where the evidence gives no reason; `owner` is the lock
    file's.
    """
    reason, _, detail = note.partition(":")
    match reason:
        case "no-rights":
            return f"the file belongs to {owner}, and this process may not probe it"
        case "file-system":
            return _untrusted_file_system(detail)
        case "no-leases":
            return _no_leases(detail)
        case _:
            return _NOTES.get(reason, reason)


_NOTES: Final = {
    "other-layer": "an overlay lies between; a holder may see the file through another layer",
    "too-early": "an empty file this young is not touched: its creator may be opening it",
    "unreadable": "the file cannot be opened",
    "symlink": "it is a symlink, which is not followed",
    "not-regular": "it is not a regular file",
}


def _untrusted_file_system(name: str) -> str:
    if name in SHARED:
        return f"on this type of file system ({name}) a holder beyond the mount is not seen"
    named = f" ({name})" if name else ""
    return (
        f"the hold proof was not tried on this file system type{named}, so nothing there counts as "
        "not open"
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
    """Return in one sentence why nothing shows that a lock may be freed."""
    if RECOVERY_PENDING in judgement.reasons:
        return (
            "its process died, and the session store does not say that the run is over; the next "
            "gateway needs this lock to resume it"
        )
    if evidence.lock.record.shape is Shape.UNREAD:
        return "it cannot be read, so nothing proves that nobody holds it"
    match judgement.verdict:
        case Verdict.HELD | Verdict.OVERDUE if evidence.proof is HoldProof.OPEN:
            over = ", for longer than it promised," if judgement.verdict is Verdict.OVERDUE else ""
            return f"a process holds it{over} and nothing shows that its run is over"
        case Verdict.HELD | Verdict.OVERDUE:
            return "its holder lives, and nothing shows that its run is over"
        case Verdict.UNCERTAIN:
            return "nothing proves that nobody holds it"
        case _:
            return "it was not removed"


def _uid(uid: int) -> str:
    return f"uid {uid}"


def no_proof_advice(
    uids: set[int], note: str, *, stray: bool = False, name: Callable[[int], str] = _uid
) -> str:
    """Return the one line that says what to do about locks that cannot be judged.

    `uids` own the lock files; `stray`: the folders belong to other uids; `name` names a uid.
    """
    owners = " and ".join(name(uid) for uid in sorted(uids))
    reason, _, detail = note.partition(":")
    if reason == "no-rights":
        run_as = f"run the reaper as {owners}" + (", one for each" if len(uids) > 1 else "")
        if not stray:
            return f"no rights to probe the lock files of {owners}: {run_as}"
        return (
            f"no rights to probe the lock files of {owners} in a folder of another uid, as a "
            f"command that runs as the wrong user leaves them: {run_as}, give them to the folder's "
            "owner with chown, or remove each with `reaper unlock --force`"
        )
    why = _why_no_proof(note, owners)
    match reason:
        case "file-system" if detail in SHARED:
            why += f": run the reaper where the disk is, or keep sessions on {_TRIED}"
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
    if record.shape is not Shape.RECORD:
        return f"{record.shape.value} ({len(lock.data)} bytes read)"
    fields = {
        "pid": record.pid,
        "createdAt": None if record.created_at_ms is None else iso(record.created_at_ms),
        "maxHoldMs": record.max_hold_ms,
        "starttime": record.starttime,
    }
    return ", ".join(f"{name} {'-' if it is None else it}" for name, it in fields.items())


def _age_source(lock: Lock) -> str:
    created = lock.record.created_at_ms
    return "the file's own time" if created is None else "createdAt"


def whose(evidence: Evidence) -> str:  # noqa: PLR0911  # one sentence for each state
    """Return in one sentence who holds the lock, by the process table."""
    pid = evidence.lock.record.pid
    holder = evidence.holder
    if evidence.lock.record.shape is Shape.UNREAD:
        return "unknown: the record was not read"
    here = "" if holder.pid in {None, pid} else f" (pid {holder.pid} as seen from here)"
    up = "" if holder.up_for is None else f", up for {duration(holder.up_for)}"
    match holder.state:
        case HolderState.SAME:
            return f"pid {pid} is the process that took it{here}{up} ({holder.program.value})"
        case HolderState.GONE:
            return f"pid {pid} does not exist here"
        case HolderState.ZOMBIE:
            return f"pid {pid} is dead, and not yet reaped by its parent"
        case HolderState.REUSED:
            return f"pid {pid} is another process now: its start time differs"
        case HolderState.FOREIGN_PROGRAM:
            return f"pid {pid} is none of OpenClaw's programs, and no start time was recorded"
        case HolderState.UNKNOWN:
            return f"pid {pid} cannot be looked at with the rights at hand"
        case HolderState.UNNAMED:
            return "the record names no process"


def _run(evidence: Evidence) -> list[str]:
    run = evidence.run
    match run.trajectory:
        case RunState.ENDED if run.end is not None:
            cut_short = "aborted, or timed out in a tool"
            how = cut_short if run.end.cut_short else "completed, or timed out at the model"
            trajectory = f"its last record is of a run that ended at {iso(run.end.at_ms)}, {how}"
        case RunState.RUNNING:
            trajectory = "a run is going on: the last record is not session.ended"
        case _:
            trajectory = "unknown: absent, unreadable or unfinished"
    match run.store:
        case StoreStatus.RUNNING:
            store = "the session is running"
        case StoreStatus.ENDED:
            ended = "-" if run.store_ended_ms is None else iso(run.store_ended_ms)
            store = f"the session's last run ended at {ended}"
        case StoreStatus.NONE:
            store = "no status for this session"
        case StoreStatus.UNKNOWN:
            store = "cannot be understood"
    key = f" [{printable(run.session_key)}]" if run.session_key else ""
    lines = [f"trajectory  {trajectory}", f"store       {store}{key}"]
    if evidence.quiet_for is not None:
        lines.append(f"quiet       nothing was written for {duration(evidence.quiet_for)}")
    if run.checkpoint_ms is not None:
        lines.append(f"checkpoint  the youngest is of {iso(run.checkpoint_ms)}")
    return lines


RULES: Final = {
    1: "held, but the run that took it was cut short, and all has been quiet since",
    2: "held for longer than its record says, or than 30 minutes where that says nothing",
    3: "held",
    4: "nobody has it open, but its run may not be over: a starting gateway resumes the run by it",
    5: "the holder is dead and nobody has the file open",
    6: "names no holder, and nobody has the file open",
    7: "nobody has the file open, though its holder is not known to be dead: forgotten",
    8: "no proof, but this very holder was seen alive and then dead",
    9: "no proof; the holder lives",
    10: "no proof, and the process table alone proves nothing",
    11: "too early to tell",
}


_UNMET: Final = {
    Unmet.NO_HOLDER: "the record names no process",
    Unmet.NO_CREATED_AT: "the record does not say when the lock was taken",
    Unmet.NO_START_TIME: "the record has no start time, so the process cannot be identified",
    Unmet.HOLDER_UNCLEAR: "it is not clear whether the process that it names holds it",
    Unmet.OTHER_PROGRAM: "a visible process holds it that is not a gateway",
    Unmet.NO_TRAJECTORY: "there is no trajectory that can be read and whose last record is whole",
    Unmet.RUN_GOES_ON: "the run has not ended: the trajectory's last record is not session.ended",
    Unmet.NOT_CUT_SHORT: "the last run was neither aborted nor timed out in a tool",
    Unmet.UNUSUAL_FILE: "the trajectory is full, has several names or is reached through a "
    "symlink: a gateway then writes nothing more to it",
    Unmet.ATTEMPT_NOT_WHOLE: "the trajectory does not show the whole run that ended",
    Unmet.ANOTHER_RUN: "another run has written to the trajectory since that run began, or has not "
    "ended",
    Unmet.BUFFERED: "the trajectory is written only at the end of a run (OpenClaw 2026.5.28 or "
    "newer), so a newer run would not be visible",
    Unmet.VERSION: "the run that ended is not known to be of OpenClaw 2026.4.22 to 2026.5.27, "
    "whose trajectory shows a newer run at once",
    Unmet.NOT_A_GATEWAYS_RUN: "the run that ended was not a gateway's",
    Unmet.HOLDER_YOUNGER: "the process that holds it is not known to be older than the run that "
    "ended",
    Unmet.NEWER_GATEWAY: "the gateway may be of OpenClaw 2026.6.1 or newer, which frees such locks "
    "itself",
    Unmet.STORE_UNCLEAR: "sessions.json does not say clearly when the run ended",
    Unmet.LATER_RUN: "sessions.json says that a later run is going on",
    Unmet.CREATED_BEFORE_RUN: "the lock is older than the run that ended",
    Unmet.CREATED_AFTER_RUN: "the lock was taken after the run had ended",
    Unmet.ANOTHER_HOLDER: "another process held a lock of this session during the run that ended",
    Unmet.LARGE_TRANSCRIPT: "the transcript is larger than 64 MiB, so it may be in compaction",
    Unmet.CHECKPOINT: "a checkpoint file is as young as the lock, so it may be in compaction",
    Unmet.NOT_QUIET: "it is not known when transcript and trajectory were last written",
}


def not_freed_because(evidence: Evidence, judgement: Judgement) -> list[str]:
    """Return why a lock that is held is not freed, in one sentence; nothing for other locks."""
    no_limit = evidence.lock.record.max_hold_ms is None
    healthy = ["a long healthy run looks the same"] if no_limit else []
    also = healthy if judgement.verdict is Verdict.OVERDUE else []
    unmet = judgement.unmet
    if unmet is None:
        return also
    if unmet is Unmet.NOT_QUIET and evidence.quiet_for is not None:
        if evidence.quiet_for <= min(evidence.age, evidence.file_age, evidence.run_end_age or 0):
            return [
                f"the transcript or trajectory changed {duration(evidence.quiet_for)} ago",
                *also,
            ]
        return [f"its run ended only {duration(evidence.run_end_age or 0)} ago", *also]
    return [_UNMET[unmet], *also]


def next_step(judgement: Judgement, action: Action, limits: Limits) -> str:
    """Return what a sweep does with the lock: `removes it`, and so on."""
    if RECOVERY_PENDING in judgement.reasons:
        return "keeps it; a gateway removes it when it starts, or at the next message"
    match action:
        case Action.KEEP:
            return "keeps it"
        case Action.FLAG:
            return "flags it and leaves it"
        case Action.REMOVE if not judgement.confirmed:
            grace = (
                limits.confirm if judgement.verdict is Verdict.ABANDONED else (limits.orphan_grace)
            )
            return f"removes it, once it has been seen so for {duration(grace)}"
        case Action.REMOVE:
            return "removes it"
