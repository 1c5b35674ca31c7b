"""What `reaper explain` says of the evidence, where a wrong word would be a false promise."""

from reaper.core.evidence import Holder, HolderState, Program
from reaper.core.verdict import Limits
from reaper.reports.explain import evidence_lines, whose
from tests.test_advice import found
from tests.test_verdict import NOT_OPEN, a_lock, evidence


def test_a_live_process_took_the_lock_only_if_its_start_time_says_so() -> None:
    alive = Holder(HolderState.SAME, Program.GATEWAY, pid=7, up_for=100.0)
    certain = evidence(NOT_OPEN)._replace(holder=alive)
    assert whose(certain) == "pid 7 is alive and took the lock (a gateway, up for 1m 40s)"
    bare = certain._replace(lock=a_lock(starttime=None))
    assert whose(bare) == (
        "pid 7 is alive (a gateway, up for 1m 40s); the lock has no start time, so another "
        "process may have had that pid"
    )


def test_an_unknown_process_is_not_said_to_exist() -> None:
    seen = evidence(NOT_OPEN, HolderState.UNKNOWN)
    assert whose(seen) == (
        "it is not known whether pid 7 is alive: the reaper cannot look at it, or at a process "
        "in another PID namespace"
    )


def test_the_age_is_by_the_time_of_the_file_if_created_at_is_in_the_future() -> None:
    def age_line(file_age: float) -> str:
        seen = evidence(NOT_OPEN)._replace(age=600.0, file_age=file_age)
        lines = evidence_lines(found(seen), Limits())
        return next(line for line in lines if line.startswith("  age "))

    assert age_line(601.0).endswith(", by createdAt")
    # Then both ages are the file's.
    assert age_line(600.0).endswith(", by the time of the file")
