"""When the next full sweep is due."""

import errno
from collections.abc import Iterator

import pytest

from reaper.core.finding import Skipped
from reaper.sweep import LEFTOVER
from reaper.watch.event_trust import EventTrust
from reaper.watch.inbox import Inbox
from reaper.watch.sweeps import SkippedFiles, Sweeps
from tests.watch_parts import Reports

NOTHING = SkippedFiles(10)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def sweeps(reports: Reports) -> Iterator[Sweeps]:
    inbox = Inbox(4, is_known=lambda _key: False)
    trust = EventTrust(inbox, reports, resync=60.0)
    yield Sweeps(trust, reports, longest_retry=60.0)
    inbox.close()


def test_a_sweep_is_due_one_interval_after_the_last(sweeps: Sweeps) -> None:
    sweeps.ended(100.0, 101.0, NOTHING)
    assert sweeps.next() == 161


def test_any_number_of_changed_folders_makes_one_sweep_per_second(sweeps: Sweeps) -> None:
    sweeps.ended(100.0, 101.0, NOTHING)
    for _ in range(3):
        sweeps.folders_changed()
        assert sweeps.next() == 102
    sweeps.ended(102.0, 102.5, NOTHING)
    assert sweeps.next() == 162.5


def test_failed_sweeps_are_retried_with_growing_delays_until_one_succeeds(
    sweeps: Sweeps, reports: Reports
) -> None:
    error = OSError(errno.EMFILE, "Too many open files")
    now = 1000.0
    delays = []
    for _ in range(8):
        sweeps.failed(error, now)
        delays.append(sweeps.next() - now)
        now = sweeps.next()
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    sweeps.ended(now, now, NOTHING)
    sweeps.failed(error, now)  # in the step of the worker after the sweep
    assert sweeps.next() == now + 60
    now = sweeps.next()
    sweeps.ended(now, now, NOTHING)
    sweeps.step_ended()
    assert sweeps.next() == now + 60
    assert reports.events() == ["sweep-failed"]
    sweeps.failed(error, now)
    assert sweeps.next() == now + 1
    sweeps.ended(now, now + 0.5, NOTHING)  # a sweep that a person requested
    sweeps.step_ended()
    assert sweeps.next() == now + 1
    assert reports.events() == ["sweep-failed", "sweep-failed"]


def test_a_parked_lock_makes_twelve_sweeps_frequent(sweeps: Sweeps) -> None:
    files = SkippedFiles(10)
    files.add(Skipped(path="/s/.rprx", reason=LEFTOVER, failed=True))
    for number in range(13):
        sweeps.ended(number, number, files)
        assert sweeps.interval == (5 if number < 12 else 60)
    assert sweeps.not_ready_because == ""


def test_a_folder_that_cannot_be_read_makes_the_sidecar_not_ready(sweeps: Sweeps) -> None:
    files = SkippedFiles(10)
    files.add(Skipped(path="/s/agents/main/sessions", reason="unreadable", failed=True))
    reasons = [sweeps.not_ready_because]
    for passed in (NOTHING, files, NOTHING):
        sweeps.ended(100.0, 101.0, passed)
        reasons.append(sweeps.not_ready_because)
    unreadable = "a folder cannot be read (unreadable)"
    assert reasons == ["the first sweep has not ended", "", unreadable, ""]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/secret/agents", "a state directory has no agents folder"),
        ("/secret", "a folder is missing"),
    ],
)
def test_a_missing_folder_is_reported_without_its_name(path: str, why: str) -> None:
    files = SkippedFiles(10)
    files.add(Skipped(path=path, reason="missing", failed=True))
    assert files.not_ready_because == why
