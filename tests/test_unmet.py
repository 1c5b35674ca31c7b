"""The sentences that say why a lock is not removed."""

import re
from pathlib import Path
from typing import Any

import pytest

from reaper.core.evidence import Evidence, HolderState, Program, StoreStatus, Unmet
from reaper.core.policy import Action, Outcome, Policy
from reaper.core.verdict import Judgement, Limits, Verdict
from reaper.reports.records import TrackedLock
from reaper.reports.unmet import POLICY, why_not_removed
from tests.test_advice import found
from tests.test_verdict import NO_PROOF, NOT_OPEN, a_lock, evidence, stuck

SWEEP = Limits()


def why(seen: Evidence, **kwargs: Any) -> tuple[str, str]:
    """Return code and text for a lock that a sweep finds."""
    not_removed = why_not_removed(found(seen, limits=SWEEP, **kwargs))
    assert not_removed is not None
    return not_removed


@pytest.mark.parametrize("unmet", Unmet)
def test_each_condition_has_a_sentence(unmet: Unmet) -> None:
    seen = evidence()
    judgement = Judgement(Verdict.HELD, (), 3, unmet=unmet)
    not_removed = why_not_removed(
        TrackedLock(seen.lock, seen, judgement, Action.KEEP, None, at=0.0)
    )
    assert not_removed is not None
    assert not_removed.code == unmet.value
    assert len(not_removed.text.split()) > 3
    assert not not_removed.text.endswith(".")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"age": 40.0}, ("too-young", "the lock is only 40s old")),
        ({"file_age": 40.0}, ("too-young", "the lock is only 40s old")),
        ({"run_end_age": 40.0}, ("run-just-ended", "the run ended only 40s ago")),
        ({"quiet_for": 40.0}, ("not-quiet", "the transcript or the trajectory changed 40s ago")),
        ({"seen_for": 4.0}, ("seen-once", "it has been seen unchanged for only 4.0s")),
        ({"seen_for": 0.0}, ("seen-once", "it was seen only once, and a sweep looks twice")),
    ],
)
def test_an_age_that_is_too_low_is_reported(
    change: dict[str, float], expected: tuple[str, str]
) -> None:
    old = {"lock": a_lock(), "file_age": 600.0, **stuck()}
    assert why(evidence(**old | change)) == expected


def test_an_unknown_program_is_not_reported_as_another() -> None:
    old = {"lock": a_lock(), "file_age": 600.0, **stuck()}
    code, text = why(evidence(**old, program=Program.UNKNOWN))
    assert code == "other-program"
    assert "not known to be a gateway" in text


def test_a_look_says_that_a_sweep_looks_twice() -> None:
    for seen in (evidence(**stuck() | {"seen_for": 0.0}), evidence(NOT_OPEN)):
        not_removed = why_not_removed(found(seen))
        assert not_removed is not None
        assert not_removed.code == "seen-once"


def test_a_lock_that_the_gateway_needs_is_reported_so() -> None:
    for store in (StoreStatus.RUNNING, StoreStatus.UNKNOWN):
        code, text = why(
            evidence(NOT_OPEN, HolderState.GONE, run=evidence(**stuck()).run._replace(store=store))
        )
        assert code == "recovery-pending"
        assert "the gateway may need the lock" in text


def test_a_lock_without_a_hold_proof_says_why() -> None:
    for holder in (HolderState.SAME, HolderState.GONE):
        seen = evidence(NO_PROOF, holder, proof_note="no-rights")
        expected = (
            "it is not known whether the file is open: the file belongs to uid 1000, and the "
            "reaper has no right to check it"
        )
        assert why(seen) == ("no-hold-proof", expected)
    assert why(evidence(NO_PROOF)) == ("no-hold-proof", "it is not known whether the file is open")


def test_a_lock_that_is_too_new_shows_how_long_it_was_seen() -> None:
    text = "it has been seen like this for only 3.0s"
    assert why(evidence(NOT_OPEN, seen_for=3.0)) == ("too-early", text)
    unnamed = evidence(NOT_OPEN, HolderState.UNNAMED, file_age=3.0, seen_for=1.0)
    assert why(unnamed) == ("too-early", text)


def test_a_lock_that_the_policy_only_reports_says_so() -> None:
    policy = Policy(on_abandoned=Action.FLAG)
    expected = ("policy", "the reaper only reports such locks (--on-abandoned flag)")
    assert why(evidence(**stuck()), policy=policy) == expected
    once = why_not_removed(found(evidence(**stuck() | {"seen_for": 0.0}), policy=policy))
    assert once == expected, "a second look would not help"


def test_an_overdue_lock_without_a_limit_may_be_healthy() -> None:
    code, text = why(evidence(lock=a_lock(age=3000.0, max_hold_ms=None), age=3000.0))
    assert code == "too-young"  # its run was not read
    assert text.endswith("; a long healthy run looks the same")


def test_a_removed_or_deleted_lock_has_no_unmet_condition() -> None:
    assert why_not_removed(found(evidence(**stuck()), limits=SWEEP)) is None
    assert why_not_removed(found(evidence(), Outcome.REMOVED)) is None
    assert why_not_removed(found(evidence(), Outcome.VANISHED)) is None


def test_each_code_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "json.md").read_text()
    table = text.partition("## Not removed because")[2].partition("## The summary")[0]
    codes = set(re.findall("`([a-z-]+)`", table)) - {"remove", "--abandoned-after"}
    assert {unmet.value for unmet in Unmet} | {POLICY} <= codes
