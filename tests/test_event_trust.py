"""Whether file events are trusted, and how often to sweep because of that."""

import math
from collections.abc import Iterator

import pytest

from reaper.adapters.file_events import EventSource
from reaper.watch.event_trust import EventTrust
from reaper.watch.inbox import Inbox, Notice
from tests.watch_parts import STATE, Reports, a_finding, key

STARTED = 1000.0


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    inbox = Inbox(4, is_known=lambda _key: False)
    yield inbox
    inbox.close()


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch, reports: Reports, inbox: Inbox) -> EventTrust:
    """Return an EventTrust whose folders are followed since a minute before the sweep."""
    monkeypatch.setattr(EventSource, "follow", lambda *_: True)
    monkeypatch.setattr(EventSource, "followed_since", lambda *_: STARTED - 60)
    return EventTrust(inbox, reports, resync=60.0)


def expect(trust: EventTrust, session: str, *, age: float = 5.0, now: float = STARTED) -> None:
    trust.expect(a_finding(session, file_age=age), STARTED, now)


def test_a_lock_that_no_event_announces_in_time_is_missed(
    trust: EventTrust, reports: Reports
) -> None:
    expect(trust, "late")
    expect(trust, "never", now=STARTED + 0.5)
    assert trust.next() == STARTED + 1
    trust.announced(key("late"))
    assert trust.next() == STARTED + 1.5
    trust.check(STARTED + 1.4)
    assert trust.resync_interval == 60
    trust.check(STARTED + 1.5)
    assert trust.resync_interval == 5
    assert trust.next() == math.inf
    assert "reaper_observer_up 0.0" in reports.scrape()
    assert reports.events() == ["events-missing"]


def test_only_a_lock_created_well_after_its_folder_was_followed_must_be_announced(
    trust: EventTrust,
) -> None:
    expect(trust, "old", age=59.0)
    assert trust.next() == math.inf
    expect(trust, "new", age=58.9)
    assert trust.next() == STARTED + 1


def test_no_event_is_expected_of_an_agent_with_dropped_events(trust: EventTrust) -> None:
    trust.dropped({(STATE, "main")})
    expect(trust, "sid")
    assert trust.next() == math.inf
    trust.swept()
    expect(trust, "sid")
    assert trust.next() == STARTED + 1


def test_events_are_trusted_again_after_enough_clean_sweeps_in_a_row(
    trust: EventTrust, reports: Reports
) -> None:
    trust.lost("why")
    trust.lost("is logged once")
    for _ in range(11):
        trust.swept()
    trust.lost("from the start")
    for _ in range(11):
        trust.swept()
        assert trust.resync_interval == 5
    trust.swept()
    assert trust.resync_interval == 60
    assert reports.events() == ["events-missing", "events-again"]
    assert "reaper_observer_up 1.0" in reports.scrape()


def test_a_missing_state_directory_is_searched_often(
    trust: EventTrust, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(EventSource, "follow", lambda *_: False)
        trust.follow([STATE])
        assert trust.resync_interval == 2
    trust.follow([STATE])
    assert trust.resync_interval == 60
    assert reports.events() == []


def test_events_are_not_trusted_while_a_folder_cannot_be_followed(
    trust: EventTrust, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: EventSource, state: object) -> bool:
        source.errors[STATE] = "no space left"
        return False

    monkeypatch.setattr(EventSource, "follow", refused)
    for _ in range(20):
        trust.follow([STATE])
        trust.swept()
        assert trust.resync_interval == 5
    assert reports.events() == ["events-missing"]
    assert 'reaper_errors_total{kind="observer"} 20.0' in reports.scrape()


def test_an_overflow_requests_a_sweep(trust: EventTrust, inbox: Inbox, reports: Reports) -> None:
    inbox.take(Notice.SWEEP)
    trust.source._inotify.on_overflow()
    assert inbox.take(Notice.EVENTS_LOST)
    assert inbox.take(Notice.SWEEP)
    assert 'reaper_events_total{type="overflow"} 1.0' in reports.scrape()
