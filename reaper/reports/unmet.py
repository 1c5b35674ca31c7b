"""Why a lock is not removed, in one sentence."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from reaper.core.evidence import Evidence, HolderState, Unmet
from reaper.core.policy import GONE, Action
from reaper.core.verdict import Verdict
from reaper.reports.explain import duration, why_no_proof

if TYPE_CHECKING:
    from reaper.reports.records import Found

POLICY: Final = "policy"
"""The code of a lock that could be removed, but that the policy only reports."""


class NotRemoved(NamedTuple):
    """`code` is stable: a value of `Unmet`, or POLICY. `text` completes "not removed because ..."
    and names no session.
    """

    code: str
    text: str


def why_not_removed(found: "Found") -> NotRemoved | None:
    """Return the first condition for removing the lock that is not met; None if all are met, or
    the lock is gone.
    """
    if found.outcome in GONE:
        return None
    unmet = found.judgement.unmet
    if unmet is not None:
        text = _text(unmet, found.evidence)
        no_limit = found.evidence.lock.record.max_hold_ms is None
        if no_limit and found.judgement.verdict is Verdict.OVERDUE:
            text += "; a long healthy run looks the same"
        return NotRemoved(unmet.value, text)
    if found.action is Action.FLAG:
        what = "other" if found.lock.kind else found.judgement.verdict.value
        option = f"--on-{what} flag"
        return NotRemoved(POLICY, f"the reaper only reports such locks ({option})")
    return None


def _text(unmet: Unmet, evidence: Evidence) -> str:
    with_age = _AGES.get(unmet)
    if with_age is not None:
        sentence, age = with_age
        return sentence.format(duration(age(evidence)))
    if unmet is Unmet.SEEN_ONCE and evidence.seen_for > 0:
        return f"it has been seen unchanged for only {duration(evidence.seen_for)}"
    why = ""
    if unmet is Unmet.NO_HOLD_PROOF:
        why = why_no_proof(evidence.proof_note, f"uid {evidence.lock.uid}")
    return _TEXTS[unmet] + (f": {why}" if why else "")


def _seen_like_this_for(evidence: Evidence) -> float:
    """Return how long the lock counts as observed; for a file that names no process, since its
    creation.
    """
    is_unnamed = evidence.holder.state is HolderState.UNNAMED
    return max(evidence.seen_for, evidence.file_age) if is_unnamed else evidence.seen_for


_AGES: Final[dict[Unmet, tuple[str, Callable[[Evidence], float]]]] = {
    Unmet.TOO_YOUNG: (
        "the lock is only {} old",
        lambda evidence: min(evidence.age, evidence.file_age),
    ),
    Unmet.RUN_JUST_ENDED: (
        "the run ended only {} ago",
        lambda evidence: evidence.run_end_age or 0.0,
    ),
    Unmet.NOT_QUIET: (
        "the transcript or the trajectory changed {} ago",
        lambda evidence: evidence.quiet_for or 0.0,
    ),
    Unmet.TOO_EARLY: ("it has been seen like this for only {}", _seen_like_this_for),
}
_TEXTS: Final = {
    Unmet.NO_HOLDER: "the lock file names no process",
    Unmet.NO_CREATED_AT: "the lock file does not say when the lock was taken",
    Unmet.NO_START_TIME: "the lock file has no start time, so its process cannot be identified",
    Unmet.HOLDER_UNCLEAR: "it is not clear which process holds the lock",
    Unmet.OTHER_PROGRAM: "the process that holds the lock is not known to be a gateway",
    Unmet.NO_TRAJECTORY: "the session has no trajectory file that can be read to its last record",
    Unmet.RUN_GOES_ON: "the run has not ended: the last record of its trajectory is not "
    "session.ended",
    Unmet.NOT_CUT_SHORT: "the last run was not aborted, and did not time out in a tool",
    Unmet.UNUSUAL_FILE: "the trajectory file is full, has several names, belongs to another user "
    "or is reached through a symlink, so a newer run may not be written to it",
    Unmet.ATTEMPT_NOT_WHOLE: "the trajectory does not show the whole run",
    Unmet.ANOTHER_RUN: "another run wrote to the trajectory after the run that ended had begun, "
    "or another run has not ended",
    Unmet.BUFFERED: "this OpenClaw writes the trajectory only when a run ends (2026.5.28 or "
    "newer), so a newer run cannot be seen",
    Unmet.VERSION: "the run is not known to be of OpenClaw 2026.4.22 to 2026.5.27; only those "
    "versions show a newer run at once",
    Unmet.NOT_A_GATEWAYS_RUN: "the run that ended was not a gateway's",
    Unmet.HOLDER_YOUNGER: "the process is not known to be older than the run that ended, so it may "
    "be in another run",
    Unmet.NEWER_GATEWAY: "the gateway may be OpenClaw 2026.6.1 or newer, which removes such locks "
    "itself",
    Unmet.STORE_UNCLEAR: "sessions.json does not say clearly when the run ended",
    Unmet.LATER_RUN: "sessions.json says that a newer run has not ended",
    Unmet.CREATED_BEFORE_RUN: "the lock is older than the run that ended",
    Unmet.CREATED_AFTER_RUN: "the lock was taken after the run had ended",
    Unmet.ANOTHER_HOLDER: "another process held a lock of this session during that run",
    Unmet.LARGE_TRANSCRIPT: "the transcript is larger than 64 MiB, or its size is not known, so a "
    "compaction may hold the lock",
    Unmet.CHECKPOINT: "a checkpoint file is as new as the lock, so a compaction may hold the lock",
    Unmet.LAST_WRITE_UNKNOWN: "it is not known when the transcript and the trajectory last changed",
    Unmet.SEEN_ONCE: "it was seen only once, and a sweep looks twice",
    Unmet.NO_HOLD_PROOF: "it is not known whether the file is open",
    Unmet.IN_USE: "a process holds it",
    Unmet.RECOVERY_PENDING: "sessions.json does not say that the run is over; the gateway may "
    "need the lock to resume it",
}
