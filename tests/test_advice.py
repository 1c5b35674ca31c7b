"""The next step for one lock: a test for each case."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from reaper.core.evidence import Evidence, HolderState, StoreStatus
from reaper.core.judge import judge
from reaper.core.lock import Shape
from reaper.core.policy import Action, Outcome, Policy, decide
from reaper.core.verdict import Limits
from reaper.reports import links
from reaper.reports.advice import ANCHORS, Advice, advice
from reaper.reports.records import TrackedLock
from tests.test_verdict import NO_PROOF, NOT_OPEN, a_lock, evidence, stuck

FINGERPRINT = a_lock().fingerprint
UNLOCK = f"reaper unlock --fingerprint {FINGERPRINT} sid"


def found(
    seen: Evidence,
    outcome: Outcome | None = None,
    *,
    policy: Policy = Policy(),  # noqa: B008  # it cannot change
    limits: Limits = Limits(seen_once_suffices=True),  # noqa: B008
) -> TrackedLock:
    """Return a lock as a look finds it, or with an outcome as a sweep does."""
    judgement = judge(seen, limits)
    action = decide(judgement._replace(confirmed=outcome is None), policy)
    return TrackedLock(seen.lock, seen, judgement, action, outcome, at=0.0)


def checked(one: Advice) -> tuple[str | None, str, str]:
    """Check what holds of all advice; return command, anchor and brief."""
    assert one.runbook in ANCHORS
    assert 0 < len(one.brief) <= 15
    assert re.fullmatch(r"[A-Z][^\n]*\.", one.text)
    if one.command is not None:
        assert "reaper" in shlex.split(one.command)
    return one.command, one.runbook, one.brief


def dead(**more: Any) -> Evidence:
    return evidence(NOT_OPEN, HolderState.GONE, **more)


def overdue(**more: Any) -> Evidence:
    return evidence(age=1200.0, **more)


def test_the_lock_of_a_dead_process_is_removed_by_a_sweep() -> None:
    assert checked(advice(found(dead()))) == ("reaper explain sid", *WAITS)
    ended = dead(run=evidence(**stuck()).run)
    assert checked(advice(found(ended))) == ("reaper sweep", "stale", "sweep")


WAITS = ("waits-for-the-gateway", "send a message")


@pytest.mark.parametrize("outcome", [None, Outcome.KEPT])
def test_a_lock_that_the_gateway_needs_is_left_to_it(outcome: Outcome | None) -> None:
    running = dead(run=evidence(**stuck(store=StoreStatus.RUNNING)).run)
    assert checked(advice(found(running, outcome))) == ("reaper explain sid", *WAITS)
    assert checked(advice(found(running, outcome), explained=True)) == (None, *WAITS)


def test_a_forgotten_lock_is_removed_by_a_sweep_that_looks_twice() -> None:
    one = advice(found(evidence(NOT_OPEN)))
    assert checked(one) == ("reaper sweep", "orphaned", "sweep")
    assert "makes sure" in one.text
    assert "makes sure" not in advice(found(evidence(NOT_OPEN, seen_for=10.0))).text


def test_an_abandoned_lock_is_removed_by_a_sweep() -> None:
    assert checked(advice(found(evidence(**stuck())))) == ("reaper sweep", "abandoned", "sweep")


def test_an_abandoned_lock_that_the_policy_only_reports_is_unlocked() -> None:
    policy = Policy(on_abandoned=Action.FLAG)
    for outcome in (None, Outcome.FLAGGED):
        one = advice(found(evidence(**stuck()), outcome, policy=policy))
        assert checked(one) == (UNLOCK, "abandoned", "unlock")


def test_a_lock_that_a_sweep_did_not_wait_for_is_left_to_the_next_sweep() -> None:
    one = advice(found(evidence(NOT_OPEN), Outcome.FLAGGED))
    assert checked(one) == ("reaper sweep", "orphaned", "sweep")


@pytest.mark.parametrize("outcome", [None, Outcome.FLAGGED])
def test_an_overdue_lock_is_explained_then_the_gateway_restarted(outcome: Outcome | None) -> None:
    one = advice(found(overdue(), outcome))
    assert checked(one) == ("reaper explain sid", "overdue", "explain")
    assert "restart the gateway" in one.text
    after = advice(found(overdue(), outcome), explained=True)
    command = f"reaper unlock --force --fingerprint {overdue().lock.fingerprint} sid"
    assert checked(after) == (command, "overdue", "restart gateway")
    assert "two runs may then write" in after.text


def test_an_overdue_lock_that_the_policy_removes_is_removed_by_such_a_sweep() -> None:
    one = advice(found(overdue(), policy=Policy(on_overdue=Action.REMOVE)))
    assert checked(one) == ("reaper sweep --on-overdue remove", "overdue", "sweep")


def test_a_lock_that_is_held_needs_nothing() -> None:
    one = found(evidence())
    assert checked(advice(one)) == ("reaper explain sid", "held", "-")
    assert checked(advice(one, explained=True)) == (None, "held", "-")


def test_a_lock_that_may_not_be_probed_asks_for_its_owner() -> None:
    one = found(evidence(NO_PROOF, HolderState.GONE, proof_note="no-rights"))
    command = "sudo -u '#1000' reaper explain sid"
    assert checked(advice(one)) == (command, "cannot-be-judged", "run as uid 1000")
    assert "uid 1000" in advice(one).text


@pytest.mark.parametrize("note", ["file-system:nfs", "no-leases:sysctl", "other-layer", ""])
def test_a_lock_without_a_hold_proof_names_the_cause(note: str) -> None:
    one = found(evidence(NO_PROOF, HolderState.GONE, proof_note=note))
    assert checked(advice(one)) == ("reaper explain sid", "cannot-be-judged", "explain")
    assert checked(advice(one, explained=True)) == (None, "cannot-be-judged", "explain")


def test_what_cannot_be_read_is_removed_by_force_once_it_was_looked_at() -> None:
    lock = a_lock(shape=Shape.UNREAD)
    one = found(evidence(NO_PROOF, HolderState.UNNAMED, lock=lock, proof_note="symlink"))
    assert checked(advice(one)) == ("reaper explain sid", "cannot-be-judged", "explain")
    command = f"reaper unlock --force --fingerprint {lock.fingerprint} sid"
    assert advice(one, explained=True).command == command


def test_a_lock_that_is_too_new_is_waited_for() -> None:
    one = found(evidence(NOT_OPEN), limits=Limits())
    assert checked(advice(one)) == ("reaper sweep", "cannot-be-judged", "wait")


def test_a_dry_run_names_the_sweep() -> None:
    one = found(evidence(**stuck()), Outcome.WOULD_REMOVE)
    assert checked(advice(one)) == ("reaper sweep", "abandoned", "sweep")


def test_a_removal_that_failed_is_tried_again_after_its_cause_is_gone() -> None:
    one = found(evidence(**stuck()), Outcome.FAILED)
    assert checked(advice(one)) == (UNLOCK, "removal-failed", "unlock")


@pytest.mark.parametrize("outcome", [Outcome.CHANGED, Outcome.RESTORED])
def test_another_lock_under_the_name_is_looked_at_again(outcome: Outcome) -> None:
    one = found(evidence(**stuck()), outcome)
    assert checked(advice(one)) == ("reaper explain sid", "abandoned", "explain")


@pytest.mark.parametrize("outcome", [Outcome.REMOVED, Outcome.VANISHED])
def test_a_lock_that_is_gone_needs_nothing(outcome: Outcome) -> None:
    assert checked(advice(found(evidence(**stuck()), outcome))) == (None, "abandoned", "-")


def test_a_command_is_one_that_a_shell_takes_as_it_is() -> None:
    def command(session: str, state_dir: str | None = None) -> str | None:
        lock = a_lock()._replace(session=session)
        return advice(found(evidence(lock=lock)), state_dir=state_dir).command

    assert command("a b") == "reaper explain 'a b'"
    assert command("-x") == "reaper explain -- -x"
    assert command("sid", "/my state") == "reaper explain --state-dir '/my state' sid"
    assert command("a\x1bb") is None


def test_a_link_to_the_runbook_has_the_address_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of what is installed; deploy/tests/test_wheel.py installs it."""
    assert links.runbook("overdue") == "docs/runbook.md#overdue"
    metadata = tmp_path / "METADATA"
    metadata.write_text("Project-URL: Documentation, https://example.org/r/docs/README.md\n")
    monkeypatch.setattr(links, "_METADATA", str(metadata))
    assert links.runbook("overdue") == "https://example.org/r/docs/runbook.md#overdue"
