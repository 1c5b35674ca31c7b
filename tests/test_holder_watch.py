"""Waiting for the exit of holders, with real processes."""

import os
import select
import subprocess
from collections.abc import Iterator

import pytest

from reaper.watch.holders import HolderWatch, Watched
from tests.conftest import DEAD, start_ticks
from tests.watch_parts import key


@pytest.fixture
def holders() -> Iterator[HolderWatch]:
    wake, other_end = os.pipe()
    holders = HolderWatch(wake)
    yield holders
    holders.close()
    os.close(wake)
    os.close(other_end)


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def exited(holders: HolderWatch, process: "subprocess.Popen[bytes]") -> set[str]:
    """Kill the process; return the names of the locks that it left."""
    process.kill()
    ready = holders.wait(60)
    assert [mask & select.POLLIN for _, mask in ready] == [select.POLLIN]
    left = holders.exited(ready, 5.0)
    assert set(left.values()) == {5.0}
    return {lock.name for lock in left}


def test_an_exit_returns_all_locks_of_the_holder_once(
    holders: HolderWatch, process: "subprocess.Popen[bytes]"
) -> None:
    starttime = start_ticks(process.pid)
    for session in ("one", "two", "released"):
        assert holders.watch(key(session), process.pid, starttime) is Watched.YES
    assert holders.watch(key("ours"), os.getpid(), None) is Watched.YES
    holders.release(key("released"))
    assert len(holders) == 2
    assert exited(holders, process) == {"one.jsonl.lock", "two.jsonl.lock"}
    assert len(holders) == 1
    assert holders.wait(0) == []


def test_a_lock_with_a_new_holder_no_longer_belongs_to_the_old_one(
    holders: HolderWatch, process: "subprocess.Popen[bytes]"
) -> None:
    holders.watch(key("taken"), process.pid, None)
    holders.watch(key("kept"), process.pid, None)
    holders.watch(key("taken"), os.getpid(), None)
    assert exited(holders, process) == {"kept.jsonl.lock"}


def test_after_a_hidden_holder_the_one_before_is_not_waited_for_either(
    holders: HolderWatch, process: "subprocess.Popen[bytes]"
) -> None:
    holders.watch(key("sid"), process.pid, None)
    assert holders.watch(key("sid"), None, None) is Watched.NO
    holders.close_idle()
    assert len(holders) == 0


def test_a_dead_holder_and_a_reused_pid_have_exited(
    holders: HolderWatch, process: "subprocess.Popen[bytes]"
) -> None:
    assert holders.watch(key("sid"), DEAD, None) is Watched.EXITED
    assert holders.watch(key("sid"), process.pid, start_ticks(process.pid) - 1) is Watched.EXITED
    assert len(holders) == 0


def test_beyond_the_bound_no_further_holder_is_waited_for(
    holders: HolderWatch, process: "subprocess.Popen[bytes]"
) -> None:
    holders.most = 1
    assert holders.watch(key("one"), process.pid, None) is Watched.YES
    assert holders.watch(key("two"), os.getpid(), None) is Watched.NO
    assert holders.watch(key("three"), process.pid, None) is Watched.YES


def test_only_holders_without_locks_are_closed(
    holders: HolderWatch, process: "subprocess.Popen[bytes]"
) -> None:
    holders.watch(key("one"), process.pid, None)
    holders.watch(key("two"), os.getpid(), None)
    holders.release(key("two"))
    assert len(holders) == 2  # a gateway soon locks again
    holders.close_idle()
    assert len(holders) == 1
