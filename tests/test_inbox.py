"""Events and notices for the worker, and when they wake it."""

import math
import select
from collections.abc import Iterator

import pytest

from reaper.adapters.file_events import CREATED, DELETED
from reaper.watch.inbox import SETTLE, Event, Inbox, Notice
from tests.watch_parts import STATE, key


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    inbox = Inbox(4, is_known=key("known").__eq__)
    yield inbox
    inbox.close()


def woken(inbox: Inbox) -> bool:
    poll = select.poll()
    poll.register(inbox.fd, select.POLLIN)
    ready = bool(poll.poll(0))
    inbox.clear_wakes()
    return ready


def test_an_event_wakes_the_worker_only_if_it_would_sleep_too_long(inbox: Inbox) -> None:
    assert inbox.sleep_until(100.0) == 100.0
    inbox.put(Event(key("late"), CREATED, 100.0))
    assert not woken(inbox)
    inbox.put(Event(key("new"), CREATED, 50.0))
    assert woken(inbox)
    inbox.put(Event(key("new"), DELETED, 50.1))
    assert not woken(inbox)
    assert inbox.sleep_until(100.0) == 50.0 + SETTLE


def test_the_deletion_of_a_known_lock_is_due_at_once(inbox: Inbox) -> None:
    inbox.sleep_until(100.1)
    inbox.put(Event(key("unknown"), DELETED, 100.0))
    assert not woken(inbox)
    inbox.put(Event(key("known"), DELETED, 100.0))
    assert woken(inbox)


def test_an_awake_worker_is_not_woken_and_sleeps_only_until_the_event_is_due(inbox: Inbox) -> None:
    inbox.sleep_until(100.0)
    inbox.drain()
    inbox.put(Event(key("new"), CREATED, 10.0))
    assert not woken(inbox)
    assert inbox.sleep_until(math.inf) == 10.0 + SETTLE
    assert inbox.drain() == ([Event(key("new"), CREATED, 10.0)], set())
    assert inbox.sleep_until(math.inf) == math.inf


def test_an_agents_events_beyond_its_share_are_dropped(inbox: Inbox) -> None:
    for number in range(10):
        inbox.put(Event(key(f"x{number}", "hostile"), CREATED, 1.0))
    for number in range(4):
        inbox.put(Event(key(f"x{number}", "other"), CREATED, 1.0))
    assert len(inbox) == 8
    queued, crowded = inbox.drain()
    assert [event.key.agent for event in queued] == ["hostile"] * 4 + ["other"] * 4
    assert crowded == {(STATE, "hostile")}
    assert inbox.drain() == ([], set())
    assert not inbox._number_of


def test_a_notice_wakes_the_worker_and_is_taken_once(inbox: Inbox) -> None:
    assert inbox.take(Notice.SWEEP)  # the first sweep is due at once
    assert not inbox.take(Notice.SWEEP)
    inbox.send(Notice.SWEEP)
    assert woken(inbox)
    assert inbox.has(Notice.SWEEP)
    assert inbox.take(Notice.SWEEP)
    assert not inbox.has(Notice.SWEEP)


def test_more_wakes_than_fit_into_the_pipe_are_one(inbox: Inbox) -> None:
    for _ in range(100_000):
        inbox.wake()
    assert woken(inbox)
    inbox.clear_wakes()
    assert not woken(inbox)
