"""What the end of a trajectory proves: the shapes of real files, and each condition."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reaper.core.evidence import RunState, Unmet
from reaper.core.lock import iso
from reaper.core.trajectory import Trajectory, last_attempt, last_record
from tests.trajectories import GATEWAY, attempt, lines, session_ended, step

BEGAN = 1_779_758_429_022
ENDED = 1_779_758_457_064


def read(*records: dict[str, Any]) -> Trajectory:
    return read_bytes(lines(*records))


def read_bytes(data: bytes) -> Trajectory:
    found = last_record(data, whole=True)
    assert found is not None
    return last_attempt(found, data) if found.unmet is None else found


def stuck(run: str = "A", **kwargs: Any) -> list[dict[str, Any]]:
    """Return the records of the reported run: cut short while it was in its tool."""
    return attempt(run, BEGAN, ENDED, **kwargs)


def test_the_whole_attempt_of_a_gateway_that_appends_live_is_a_live_witness() -> None:
    for late in (False, True):  # the late shape also has records of the model's answer
        found = read(*attempt("earlier", BEGAN - 9000, BEGAN - 1000), *stuck(late=late))
        assert found.state is RunState.ENDED
        assert found.end is not None
        assert (found.end.started_ms, found.end.at_ms) == (BEGAN, ENDED)
        assert found.end.cut_short
        assert found.unmet is None


@pytest.mark.parametrize(
    "version", ["2026.4.22", "2026.5.7", "2026.5.22", "2026.5.27", "2026.5.26-2"]
)
def test_releases_from_4_22_to_5_27_append_live(version: str) -> None:
    assert read(*stuck(version=version)).unmet is None


@pytest.mark.parametrize(
    "version",
    ["2026.4.21", "2026.5.28", "2026.6.11", "2026.7.1-2", "2026.5.22-beta.1", "2026.5", "5.22", "",
     "2026.5.22+dev", "2025.5.22", "2026.5.220", 7, None],
)  # fmt: skip
def test_no_other_version_appends_live(version: object) -> None:
    assert read(*stuck(version=version)).unmet is Unmet.VERSION


def test_without_the_metadata_there_is_no_version() -> None:
    """A run of the Codex runtime has none, and a record above 256 KiB is replaced by a note."""
    records = stuck()
    records[1]["data"] = {"truncated": True}
    assert read(*records).unmet is Unmet.VERSION
    records = stuck()
    records[1]["type"] = "context.compiled"
    assert read(*records).unmet is Unmet.VERSION


def test_a_file_that_numbers_its_records_across_runs_is_buffered() -> None:
    """2026.5.28 to 7.35 replace the file at the end of each run. After an upgrade the first run
    still follows the records of the old release.
    """
    after = stuck()
    for number, record in enumerate(after, start=8):
        record["sourceSeq"] = number
    assert read(*attempt("old", BEGAN - 9000, BEGAN - 1000), *after).unmet is Unmet.BUFFERED


def test_another_runs_record_after_the_start_means_another_run() -> None:
    """Seen: a whole run of another process between the records of a run that was cut short."""
    cut = stuck()
    for other_run in (attempt("B", BEGAN, ENDED), attempt("B", BEGAN, ENDED)[:1]):
        assert read(*cut[:-1], *other_run, cut[-1]).unmet is Unmet.ANOTHER_RUN
        assert read(*cut[:1], *other_run, *cut[1:]).unmet is Unmet.ANOTHER_RUN
    nameless = stuck()
    for record in nameless:
        record["runId"] = ""
    assert read(*nameless).unmet is Unmet.ANOTHER_RUN


@pytest.mark.parametrize("missing", range(4))
def test_an_attempt_with_a_gap_is_not_whole(missing: int) -> None:
    records = stuck()
    del records[missing]
    assert read(*records).unmet is Unmet.ATTEMPT_NOT_WHOLE


def test_an_attempt_says_when_its_prompt_was_submitted() -> None:
    end = read(*stuck()).end
    assert end is not None
    assert (end.started_ms, end.prompted_ms) == (BEGAN, BEGAN + 3)
    without = stuck()
    without[3]["type"] = "prompt.skipped"
    assert read(*without).end == end._replace(prompted_ms=None)


def test_a_run_that_began_before_and_has_no_end_may_go_on() -> None:
    """It locked the session again after the other run was cut short, and waits for its model."""
    earlier = attempt("L", BEGAN - 500, ENDED, invocation=["node", "openclaw.mjs", "agent"])
    found = read(*earlier[:-1], *stuck())
    assert (found.unmet, found.other_run_ms) == (None, BEGAN - 500)
    assert read(*earlier, *stuck()).other_run_ms is None
    # The youngest of several counts; a retry counts from its start.
    older = attempt("K", BEGAN - 900, ENDED)[:2]
    assert read(*older, *earlier[:-1], *stuck()).other_run_ms == BEGAN - 500
    retried = attempt("L", BEGAN - 100, ENDED)[:3]
    assert read(*earlier, *retried, *stuck()).other_run_ms == BEGAN - 100


@pytest.mark.parametrize("case", ["no start", "no date", "next attempt", "no record"])
def test_a_run_with_an_unknown_start_counts_as_young(case: str) -> None:
    earlier = attempt("L", BEGAN - 500, BEGAN - 100)
    before = {
        "no start": lines(*earlier[1:-1]),
        "no date": lines({**earlier[0], "ts": "never"}),
        "next attempt": lines(*earlier, step("L", 1, "next_fallback")),
        "no record": b"torn\n",
    }
    assert read_bytes(before[case] + lines(*stuck())).other_run_ms == ENDED
    assert read(*earlier, step("L", 1, "chain_exhausted"), *stuck()).other_run_ms is None


@given(st.data())
def test_no_changed_byte_raises(data: st.DataObject) -> None:
    """An agent can write its trajectory, and a bad byte must not end the sidecar."""
    file = bytearray(lines(*attempt("L", BEGAN - 500, ENDED), *stuck(), step("A", 1, "succeeded")))
    for _ in range(data.draw(st.integers(1, 3))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    found = last_record(bytes(file), whole=True)
    assert found is not None
    last_attempt(found, bytes(file))


def test_a_file_that_changes_after_its_last_record_was_read_is_no_live_witness() -> None:
    """A writer can change the file between the two reads."""
    found = last_record(lines(*stuck()), whole=True)
    assert found is not None
    for data in (b"", b"\n", lines(step("A", 1, "succeeded")), lines(*stuck()[-1:]), b"torn"):
        assert last_attempt(found, data).unmet is not None


@given(st.binary())
def test_no_file_read_in_place_of_another_raises(data: bytes) -> None:
    found = last_record(lines(*stuck()), whole=True)
    assert found is not None
    assert last_attempt(found, data).unmet is not None


@pytest.mark.parametrize("text", [b'"2026.5.22"', b'"gateway"', b'"succeeded"'])
def test_invalid_utf_8_within_a_record_is_no_live_witness(text: bytes) -> None:
    content = lines(*stuck(), step("A", 1, "succeeded"))
    assert read_bytes(content).unmet is None
    assert read_bytes(content.replace(text, b'"\xff"')).unmet is not None


def test_an_attempt_that_does_not_begin_with_its_start_is_not_whole() -> None:
    records = stuck()
    records[0]["type"] = "context.compiled"
    assert read(*records).unmet is Unmet.ATTEMPT_NOT_WHOLE


def test_an_attempt_whose_start_has_no_date_is_not_whole() -> None:
    records = stuck()
    records[0]["ts"] = "never"
    assert read(*records).unmet is Unmet.ATTEMPT_NOT_WHOLE


def test_an_attempt_that_has_only_its_start_is_not_whole() -> None:
    """The file was replaced between the two reads."""
    found = last_record(lines(*stuck()), whole=True)
    assert found is not None
    assert last_attempt(found, lines(stuck()[0])).unmet is Unmet.ATTEMPT_NOT_WHOLE


def test_a_line_that_is_no_record_breaks_the_attempt() -> None:
    first, *others = stuck()
    for junk in (b"{}\n", b"junk\n", b"\n", b"[" * 100_000 + b"\n", b'{"type":7}\n', b"\xff\n"):
        assert read_bytes(lines(first) + junk + lines(*others)).unmet is Unmet.ATTEMPT_NOT_WHOLE


def test_the_last_of_several_attempts_of_one_run_counts() -> None:
    """A retry writes a new `session.started` with the same runId and numbers from 1 again."""
    first = attempt("A", BEGAN - 9000, BEGAN - 1000)
    found = read(*first, *stuck())
    assert found.unmet is None
    assert found.end is not None
    assert found.end.started_ms == BEGAN


@pytest.mark.parametrize(
    ("invocation", "unmet"),
    [
        (["node", "/app/openclaw.mjs", "gateway"], None),
        (["node", "/app/dist/index.js", "gateway", "--bind", "lan"], None),
        (["node", "openclaw.mjs", "--profile", "work", "gateway", "run"], None),
        (["node", "openclaw.mjs", "agent", "--local", "--message", "gateway"], "no"),
        (["node", "openclaw.mjs", "--profile", "gateway", "agent", "--local"], "no"),
        (["node", "openclaw.mjs", "gateway", "call", "agent"], "no"),
        (["node", "/srv/gateway"], "no"),
        ([], "no"),
    ],
)
def test_the_run_must_be_one_of_a_gateway(invocation: list[str], unmet: str | None) -> None:
    found = read(*stuck(invocation=invocation))
    assert found.unmet is (Unmet.NOT_A_GATEWAYS_RUN if unmet else None)


@pytest.mark.parametrize("outcome", ["succeeded", "chain_exhausted"])
def test_a_record_of_the_fallback_may_follow_the_end_of_the_same_run(outcome: str) -> None:
    """Seen: the primary model fails; the attempt of the fallback times out in its tool."""
    first = attempt("A", BEGAN - 9000, BEGAN - 1000, cut_short=False)
    tail = [step("A", 1, "next_fallback"), *stuck()]
    found = read(*first, *tail, step("A", 2, outcome))
    assert found.unmet is None
    assert found.end is not None
    assert (found.end.started_ms, found.end.at_ms) == (BEGAN, ENDED)
    assert read(*first, *tail, step("B", 2, outcome)).end is None


def test_a_fallback_record_that_was_not_appended_live_means_that_the_run_goes_on() -> None:
    note = step("A", 1, "succeeded") | {"sourceSeq": 9}
    assert read(*stuck(), note).unmet is Unmet.RUN_GOES_ON


def test_a_record_that_is_being_written_belongs_to_a_run_that_may_go_on() -> None:
    for written in (b"{", lines(*stuck("B"))[:50], lines(stuck("B")[0])[:-1]):
        assert read_bytes(lines(*stuck()) + written) == Trajectory()


def test_a_step_to_the_next_model_announces_another_attempt() -> None:
    assert read(*stuck(), step("A", 1, "next_fallback")).unmet is Unmet.RUN_GOES_ON


@pytest.mark.parametrize(
    ("flags", "cut_short"),
    [
        ({"aborted": True, "timedOut": True, "timedOutDuringToolExecution": True}, True),
        ({"timedOutDuringToolExecution": True}, True),
        ({"aborted": True}, True),
        ({"aborted": True, "timedOut": True}, False),
        ({"timedOut": True}, False),
        ({}, False),
    ],
)
def test_a_time_out_at_the_model_ends_an_attempt_and_not_the_run(
    flags: dict[str, bool], cut_short: bool
) -> None:
    found = read(session_ended("A", 1, ENDED, flags))
    assert found.end is not None
    assert found.end.cut_short is cut_short
    assert (found.unmet is Unmet.NOT_CUT_SHORT) is not cut_short


def test_any_other_last_record_means_that_the_run_goes_on() -> None:
    for count in range(1, 5):
        assert read(*stuck()[:count]).unmet is Unmet.RUN_GOES_ON


@pytest.mark.parametrize(
    "tail",
    [b"", b"\n", b"{}", b'{"type":"session.ended"}\n',
     b'{"type":"session.ended","ts":"never","data":{}}\n',
     b'{"type":"session.ended","ts":"2026-05-24T10:29:15.171Z","data":true}\n',
     b'{"type":"session.ended","ts":"2026-05-24T10:29:15.171Z","data":{"aborted":"yes"}}\n',
     b'{"type":"session.ended","ts":"2026-05-24T10:29:15.171Z","data":{"aborted":true}}', b"[]\n"],
    ids=range(9),
)  # fmt: skip
def test_an_unfinished_or_malformed_record_shows_nothing(tail: bytes) -> None:
    assert read_bytes(tail) == Trajectory()


def test_a_last_record_that_was_read_in_part_asks_for_more() -> None:
    data = lines(*stuck())
    assert last_record(data[-20:], whole=False) is None
    assert last_record(data[-20:], whole=True) == Trajectory()


@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_raise(data: bytes, whole: bool) -> None:
    found = last_record(data, whole=whole)
    if found is not None:
        last_attempt(found, data)


@given(st.data())
def test_no_damaged_attempt_is_a_live_witness(data: st.DataObject) -> None:
    """A dropped, repeated or changed record is always noticed."""
    records = stuck()
    at = data.draw(st.integers(0, len(records) - 1))
    match data.draw(st.sampled_from(["drop", "repeat", "run", "seq", "source"])):
        case "drop":
            del records[at]
        case "repeat":
            records.insert(at + 1, dict(records[max(1, at)]))  # a second start begins a retry
        case "run":
            records[at] = records[at] | {"runId": "B"}
        case "seq":
            records[at] = records[at] | {"seq": 9}
        case _:
            records[at] = records[at] | {"sourceSeq": 9}
    assert read(*records).unmet is not None


def test_the_records_of_these_tests_are_like_those_of_a_real_gateway() -> None:
    """Their keys are those in facts/trajectory.md."""
    started, metadata, *_, ended = stuck()
    assert started["type"] == "session.started"
    assert metadata["data"]["harness"]["invocation"] == GATEWAY
    assert set(ended) >= {"type", "ts", "seq", "sourceSeq", "runId", "sessionId", "data"}
    assert ended["ts"] == iso(ENDED)
    json.dumps(stuck())
