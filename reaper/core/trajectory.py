"""What the end of a session's trajectory says about its last run. Takes bytes; opens nothing.

Gateways from 2026.4.22 to 5.27 append each record as it happens, so the file is a live witness of
the run that is going on. From 5.28 on it is replaced once per attempt, at its end: during a healthy
run its last record belongs to an earlier run. Nothing in one record distinguishes the two, so the
whole last attempt is checked (docs/facts.md, "The trajectory as a live witness").
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeVar

import msgspec

from reaper.core.evidence import Program, RunEnd, RunState, Unmet
from reaper.core.programs import program_of
from reaper.core.record import parse_date

FIRST_TAIL: Final = 8 * 1024
"""Bytes that hold the last record in nearly every file: `session.ended` is some 550 bytes long."""
TAIL: Final = 1536 * 1024
"""Bytes that hold the longest last record, whatever it is."""

_OLDEST_LIVE: Final = (2026, 4, 22)
_FIRST_BUFFERED: Final = (2026, 5, 28)
_RELEASE: Final = re.compile(r"([0-9]{4})\.([0-9]{1,2})\.([0-9]{1,2})(?:-[0-9]+)?")


class Trajectory(NamedTuple):
    """`state` is RUNNING if the last record is anything but `session.ended`, and UNKNOWN if it is
    missing or malformed. `unmet` is the first condition of a live witness that the file does not
    meet; None if it meets all that the file alone can show. `other_run_ms` is the start (epoch) of
    the youngest other run whose end is not in the file; None if all other runs ended.
    """

    state: RunState = RunState.UNKNOWN
    end: RunEnd | None = None
    unmet: Unmet | None = Unmet.NO_TRAJECTORY
    other_run_ms: int | None = None


class _Record(msgspec.Struct, rename="camel"):
    """The fields of a record that are used; others are skipped and never become objects."""

    type: str
    ts: str = ""
    run_id: str = ""
    seq: int = 0
    source_seq: int = 0
    data: msgspec.Raw = msgspec.Raw(b"null")


class _End(msgspec.Struct, rename="camel"):
    aborted: bool = False
    timed_out: bool = False
    timed_out_during_tool_execution: bool = False

    @property
    def cut_short(self) -> bool:
        """Whether the run was cut short. A time-out at a model call ends an attempt but not the
        run: upstream may compact, hold the lock for that, and try again.
        """
        return self.timed_out_during_tool_execution or (self.aborted and not self.timed_out)


class _FallbackStep(msgspec.Struct, rename="camel"):
    fallback_step_final_outcome: str


class _Harness(msgspec.Struct):
    version: str
    invocation: list[str]


class _Metadata(msgspec.Struct):
    harness: _Harness


_Decoded = TypeVar("_Decoded")

_RECORDS: Final = msgspec.json.Decoder(_Record)
_ENDS: Final = msgspec.json.Decoder(_End)
_METADATA: Final = msgspec.json.Decoder(_Metadata)
_STEPS: Final = msgspec.json.Decoder(_FallbackStep)
_LAST_STEPS: Final = frozenset({"succeeded", "chain_exhausted"})
"""Outcomes of a `model.fallback_step` after which the run makes no further attempt; `next_fallback`
announces one."""


def last_record(tail: bytes, *, whole: bool) -> Trajectory | None:
    """Return what the last record says; None if it does not fit into `tail`.

    `whole`: the tail is the whole file. A run that was cut short still needs `last_attempt`.

    After a run in which a fallback model took over, the outer loop of the same run notes that in a
    `model.fallback_step`: then the record before counts.
    """
    if not tail.endswith(b"\n"):
        return Trajectory()  # empty, or the last record is being written
    run_id = None
    end = len(tail) - 1
    while True:
        start = tail.rfind(b"\n", 0, end) + 1
        if start == 0 and not whole:
            return None
        record = _decoded(_RECORDS, tail[start:end])
        if record is None or run_id not in {None, record.run_id}:
            return Trajectory()
        if start == 0 or not _is_last_step(record):
            break
        run_id, end = record.run_id, start - 1
    if record.type != "session.ended":
        return Trajectory(state=RunState.RUNNING, unmet=Unmet.RUN_GOES_ON)
    return _ended(record)


def _is_last_step(record: _Record) -> bool:
    """Return whether the record says that the run makes no further attempt."""
    if record.type != "model.fallback_step" or record.seq != record.source_seq:
        return False
    step = _decoded(_STEPS, record.data)
    return step is not None and step.fallback_step_final_outcome in _LAST_STEPS


def _ended(record: _Record) -> Trajectory:
    at_ms = parse_date(record.ts)
    end = _decoded(_ENDS, record.data)
    if end is None or at_ms is None:
        return Trajectory()
    return Trajectory(
        state=RunState.ENDED,
        end=RunEnd(at_ms=at_ms, cut_short=end.cut_short),
        unmet=None if end.cut_short else Unmet.NOT_CUT_SHORT,
    )


def last_attempt(found: Trajectory, data: bytes) -> Trajectory:
    """Add what the whole file, `data`, shows of the run of the last record: when its last attempt
    started, or why the file is no live witness of it. Add also when another run began that goes on.
    """
    attempt = _attempt(data)
    if isinstance(attempt, Unmet):
        return found._replace(unmet=attempt)
    start, metadata = attempt[0], attempt[1]
    prompts = [record.ts for record in attempt if record.type == "prompt.submitted"]
    started_ms = parse_date(start.ts)
    if started_ms is None or found.end is None:
        return found._replace(unmet=Unmet.ATTEMPT_NOT_WHOLE)
    return found._replace(
        end=found.end._replace(
            started_ms=started_ms, prompted_ms=parse_date(prompts[-1]) if prompts else None
        ),
        unmet=_unmet_by_writer(metadata),
        other_run_ms=_youngest_open_run(data, but=start.run_id, until_ms=found.end.at_ms),
    )


def _youngest_open_run(data: bytes, *, but: str, until_ms: int) -> int | None:
    """Return the start of the youngest other run whose end is not recorded, None if all have
    ended.

    Runs overlap: one that began before the last run can take the lock again after that, and writes
    nothing while it waits for its model. A run whose start is missing, or has no date, counts as
    begun at `until_ms`; so does one that announces another attempt, and a line that is not a
    record.
    """
    open_runs: dict[str, int] = {}
    for record in _from_first(data):
        if record is None:
            return until_ms
        if record.run_id == but:
            continue
        if record.type == "session.ended" or _is_last_step(record):
            open_runs.pop(record.run_id, None)
            continue
        began_ms = parse_date(record.ts) if record.type == "session.started" else None
        if began_ms is not None or record.run_id not in open_runs:
            open_runs[record.run_id] = until_ms if began_ms is None else began_ms
    return max(open_runs.values(), default=None)


def _attempt(data: bytes) -> list[_Record] | Unmet:
    """Return the records of the last attempt, from its `session.started` on; or the condition that
    they do not meet: only records of that run, `seq` without a gap, `sourceSeq` equal to it.
    """
    found: list[_Record] = []
    for record in _from_last(data):
        if record is None:
            return Unmet.ATTEMPT_NOT_WHOLE
        if not record.run_id or (found and record.run_id != found[0].run_id):
            return Unmet.ANOTHER_RUN
        if not found and _is_last_step(record):
            continue  # with a `seq` of its own; `last_record` saw that it is of the same run
        found.append(record)
        if record.type == "session.started":
            break
    found.reverse()
    is_whole = bool(found) and found[0].type == "session.started" and len(found) > 1
    if not is_whole or [record.seq for record in found] != list(range(1, len(found) + 1)):
        return Unmet.ATTEMPT_NOT_WHOLE
    if any(record.source_seq != record.seq for record in found):
        return Unmet.BUFFERED
    return found


def _from_last(data: bytes) -> Iterator[_Record | None]:
    """Yield the records, the last first; None for a line that is no record."""
    end = len(data) - 1 if data.endswith(b"\n") else len(data)
    while end >= 0:
        start = data.rfind(b"\n", 0, end) + 1
        yield _decoded(_RECORDS, data[start:end])
        end = start - 1


def _from_first(data: bytes) -> Iterator[_Record | None]:
    """Yield the records in their order; None for a line that is no record."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        yield _decoded(_RECORDS, data[start:end])
        start = end + 1


def _decoded(
    decoder: "msgspec.json.Decoder[_Decoded]", data: bytes | msgspec.Raw
) -> _Decoded | None:
    """Return the value; None for bytes that are not what the decoder expects, whatever they are."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _unmet_by_writer(record: _Record) -> Unmet | None:
    """Return why a gateway that appends live cannot have written the attempt, None if it can
    have.
    """
    if record.type != "trace.metadata":
        return Unmet.VERSION
    metadata = _decoded(_METADATA, record.data)
    if metadata is None:
        return Unmet.VERSION
    harness = metadata.harness
    release = _RELEASE.fullmatch(harness.version)
    if release is None:
        return Unmet.VERSION
    if not _OLDEST_LIVE <= tuple(map(int, release.groups())) < _FIRST_BUFFERED:
        return Unmet.VERSION
    if program_of(harness.invocation) is not Program.GATEWAY:
        return Unmet.NOT_A_GATEWAYS_RUN
    return None
