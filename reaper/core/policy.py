"""From verdict to action."""

from typing import Final, NamedTuple, assert_never

from reaper.core.fast_enum import FastEnum
from reaper.core.verdict import RECOVERY_PENDING, Judgement, Verdict


class Action(FastEnum):
    KEEP = "keep"
    FLAG = "flag"
    REMOVE = "remove"


class Outcome(FastEnum):
    """What became of an action."""

    KEPT = "kept"
    FLAGGED = "flagged"
    REMOVED = "removed"
    WOULD_REMOVE = "would-remove"
    """A dry run did not remove it."""
    VANISHED = "vanished"
    """It was already gone."""
    CHANGED = "changed"
    """Another lock had the name of the judged one."""
    RESTORED = "restored"
    """Another lock was moved by mistake, and is back."""
    FAILED = "failed"


GONE: Final = frozenset({Outcome.REMOVED, Outcome.VANISHED})
"""Outcomes after which no lock has the name."""


class Policy(NamedTuple):
    """What to do with ABANDONED and OVERDUE locks, and with other locks that are stuck: FLAG or
    REMOVE. The other verdicts leave no choice.
    """

    on_abandoned: Action = Action.REMOVE
    on_overdue: Action = Action.FLAG
    on_other: Action = Action.FLAG


def without_second_look(
    judgement: Judgement, policy: Policy, *, is_other: bool = False
) -> Judgement:
    """Return a judgement that is not confirmed, without the condition that a second look is missing
    if the policy only reports such a lock after the second look, too.
    """
    after = decide(judgement._replace(confirmed=True), policy, is_other=is_other)
    return judgement if after is Action.REMOVE else judgement._replace(unmet=None)


def decide(judgement: Judgement, policy: Policy, *, is_other: bool = False) -> Action:
    """Return the action. HELD, UNCERTAIN and `recovery-pending` are always KEEP; a verdict that
    rests on one look is at most FLAG. `is_other`: not a session lock.
    """
    if RECOVERY_PENDING in judgement.reasons:
        return Action.KEEP
    match judgement.verdict:
        case Verdict.HELD | Verdict.UNCERTAIN:
            return Action.KEEP
        case Verdict.STALE | Verdict.ORPHANED:
            chosen = policy.on_other if is_other else Action.REMOVE
        case Verdict.ABANDONED:
            chosen = policy.on_abandoned
        case Verdict.OVERDUE:
            chosen = policy.on_overdue
        case _:
            assert_never(judgement.verdict)
    if chosen is Action.REMOVE and not judgement.confirmed:
        return Action.FLAG
    return chosen
