"""The next step for a lock, in each case."""

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from reaper.core.evidence import Evidence, HolderState, StoreStatus
from reaper.core.judge import judge
from reaper.core.lock import Shape
from reaper.core.policy import Action, Outcome, Policy, decide, without_second_look
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
    """Return a lock as a look finds it, or with an outcome, as a sweep finds it."""
    judgement = judge(seen, limits)
    if not judgement.confirmed:
        judgement = without_second_look(judgement, policy)
    action = decide(judgement._replace(confirmed=outcome is None), policy)
    return TrackedLock(seen.lock, seen, judgement, action, outcome, at=0.0)


def checked(step: Advice) -> tuple[str | None, str, str]:
    """Check what is true of all advice; return command, anchor and brief."""
    assert step.runbook in ANCHORS
    assert 0 < len(step.brief) <= 15
    assert re.fullmatch(r"[A-Z][^\n]*\.", step.text)
    if step.command is not None:
        assert "reaper" in shlex.split(step.command)
    return step.command, step.runbook, step.brief


def dead(**more: Any) -> Evidence:
    return evidence(NOT_OPEN, HolderState.GONE, **more)


def overdue(**more: Any) -> Evidence:
    return evidence(age=1200.0, **more)


def test_the_lock_of_a_dead_process_is_removed_by_a_sweep() -> None:
    ended = dead(run=evidence(**stuck()).run)
    assert checked(advice(found(ended))) == ("reaper sweep", "stale", "sweep")


@pytest.mark.parametrize("outcome", [None, Outcome.KEPT])
def test_a_lock_that_the_gateway_needs_waits_for_a_message(outcome: Outcome | None) -> None:
    running = dead(run=evidence(**stuck(store=StoreStatus.RUNNING)).run)
    step = "waits-for-the-gateway", "send a message"
    assert checked(advice(found(running, outcome))) == ("reaper explain sid", *step)
    assert checked(advice(found(running, outcome), explained=True)) == (None, *step)


def test_a_store_that_is_not_understood_is_repaired_before_a_message_is_sent() -> None:
    unknown = dead(run=evidence(**stuck(store=StoreStatus.UNKNOWN)).run)
    step = advice(found(unknown))
    assert checked(step) == ("reaper explain sid", "waits-for-the-gateway", "explain")
    assert step.text.startswith("Repair sessions.json")


def test_a_forgotten_lock_is_removed_by_a_sweep_that_looks_twice() -> None:
    step = advice(found(evidence(NOT_OPEN)))
    assert checked(step) == ("reaper sweep", "orphaned", "sweep")
    assert "makes sure" in step.text
    assert "makes sure" not in advice(found(evidence(NOT_OPEN, seen_for=10.0))).text


def test_an_abandoned_lock_is_removed_by_a_sweep() -> None:
    assert checked(advice(found(evidence(**stuck())))) == ("reaper sweep", "abandoned", "sweep")


def test_an_abandoned_lock_that_the_policy_only_reports_needs_unlock() -> None:
    policy = Policy(on_abandoned=Action.FLAG)
    for outcome, seen_for in itertools.product((None, Outcome.FLAGGED), (10.0, 0.0)):
        seen = evidence(**stuck() | {"seen_for": seen_for})
        step = advice(found(seen, outcome, policy=policy))
        assert checked(step) == (UNLOCK, "abandoned", "unlock")


def test_a_lock_that_a_sweep_did_not_wait_for_is_removed_by_the_next_sweep() -> None:
    step = advice(found(evidence(NOT_OPEN), Outcome.FLAGGED))
    assert checked(step) == ("reaper sweep", "orphaned", "sweep")


@pytest.mark.parametrize("outcome", [None, Outcome.FLAGGED])
def test_for_an_overdue_lock_the_advice_is_explain_then_restart(outcome: Outcome | None) -> None:
    step = advice(found(overdue(), outcome))
    assert checked(step) == ("reaper explain sid", "overdue", "explain")
    assert "restart the gateway" in step.text
    after = advice(found(overdue(), outcome), explained=True)
    command = f"reaper unlock --force --fingerprint {overdue().lock.fingerprint} sid"
    assert checked(after) == (command, "overdue", "restart gateway")
    assert "two runs may then write" in after.text


def test_an_overdue_lock_is_removed_by_a_sweep_with_the_same_policy() -> None:
    step = advice(found(overdue(), policy=Policy(on_overdue=Action.REMOVE)))
    assert checked(step) == ("reaper sweep --on-overdue remove", "overdue", "sweep")


def test_a_held_lock_needs_no_action() -> None:
    tracked = found(evidence())
    assert checked(advice(tracked)) == ("reaper explain sid", "held", "-")
    assert checked(advice(tracked, explained=True)) == (None, "held", "-")


@pytest.mark.parametrize("uid", [1000, 100_000, 2**32 - 2])
def test_a_lock_that_may_not_be_probed_needs_its_owner(uid: int) -> None:
    """The table has no room for each uid, and a part of a uid is another uid."""
    lock = a_lock()._replace(uid=uid)
    tracked = found(evidence(NO_PROOF, HolderState.GONE, lock=lock, proof_note="no-rights"))
    command = f"sudo -u '#{uid}' reaper explain sid"
    assert checked(advice(tracked)) == (command, "cannot-be-judged", "run as owner")
    assert f"uid {uid}," in advice(tracked).text


@pytest.mark.parametrize("note", ["file-system:nfs", "no-leases:sysctl", "other-layer", ""])
def test_a_lock_without_a_hold_proof_needs_explain(note: str) -> None:
    tracked = found(evidence(NO_PROOF, HolderState.GONE, proof_note=note))
    assert checked(advice(tracked)) == ("reaper explain sid", "cannot-be-judged", "explain")
    assert checked(advice(tracked, explained=True)) == (None, "cannot-be-judged", "explain")


def test_a_lock_that_cannot_be_read_is_removed_by_force_after_explain() -> None:
    lock = a_lock(shape=Shape.UNREAD)
    tracked = found(evidence(NO_PROOF, HolderState.UNNAMED, lock=lock, proof_note="symlink"))
    assert checked(advice(tracked)) == ("reaper explain sid", "cannot-be-judged", "explain")
    command = f"reaper unlock --force --fingerprint {lock.fingerprint} sid"
    assert advice(tracked, explained=True).command == command


def test_for_a_lock_that_is_too_new_the_advice_is_to_wait() -> None:
    tracked = found(evidence(NOT_OPEN), limits=Limits())
    assert checked(advice(tracked)) == ("reaper sweep", "cannot-be-judged", "wait")


def test_a_dry_run_advises_the_sweep() -> None:
    tracked = found(evidence(**stuck()), Outcome.WOULD_REMOVE)
    assert checked(advice(tracked)) == ("reaper sweep", "abandoned", "sweep")


def test_a_failed_removal_needs_unlock() -> None:
    tracked = found(evidence(**stuck()), Outcome.FAILED)
    assert checked(advice(tracked)) == (UNLOCK, "removal-failed", "unlock")


@pytest.mark.parametrize("outcome", [Outcome.CHANGED, Outcome.RESTORED])
def test_another_lock_under_the_name_needs_explain(outcome: Outcome) -> None:
    tracked = found(evidence(**stuck()), outcome)
    assert checked(advice(tracked)) == ("reaper explain sid", "abandoned", "explain")


@pytest.mark.parametrize("outcome", [Outcome.REMOVED, Outcome.VANISHED])
def test_a_removed_lock_needs_no_action(outcome: Outcome) -> None:
    assert checked(advice(found(evidence(**stuck()), outcome))) == (None, "abandoned", "-")


def test_a_command_is_quoted_for_the_shell() -> None:
    def command(session: str, state_dir: str | None = None) -> str | None:
        lock = a_lock()._replace(session=session)
        return advice(found(evidence(lock=lock)), state_dir=state_dir).command

    assert command("a b") == "reaper explain 'a b'"
    assert command("-x") == "reaper explain -- -x"
    assert command("sid", "/my state") == "reaper explain --state-dir '/my state' sid"
    assert command("a\x1bb") is None


def test_a_link_to_the_runbook_has_the_projects_address_if_it_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The address is in the metadata of an installed wheel: deploy/tests/test_wheel.py."""
    assert links.runbook("overdue") == "docs/runbook.md#overdue"
    metadata = tmp_path / "METADATA"
    metadata.write_text("Project-URL: Documentation, https://example.org/r/docs/README.md\n")
    monkeypatch.setattr(links, "_METADATA", str(metadata))
    assert links.runbook("overdue") == "https://example.org/r/docs/runbook.md#overdue"
