"""The lines of the log, as JSON and as logfmt."""

import io
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reaper.core import record
from reaper.core.lock import FileId, Lock
from reaper.reports.journal import Journal
from tests.logfmt import parse

_NOW = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_json_line_ends_in_event_level_and_time() -> None:
    stream = io.StringIO()
    journal = Journal(stream, json=True)
    journal.info("watching", what=["a", "b\n"], odd="\x1b[31mé", count=1, nothing=None, is_it=True)
    journal.warn("skipped", path="/x y")
    first, second = stream.getvalue().splitlines()
    found = json.loads(first)
    assert re.fullmatch(_NOW, found.pop("timestamp"))
    assert list(found.items()) == [
        ("what", ["a", "b\\n"]),
        ("odd", "\\x1b[31mé"),
        ("count", 1),
        ("nothing", None),
        ("is_it", True),
        ("event", "watching"),
        ("level", "info"),
    ]
    assert first.isascii()
    assert json.loads(second)["level"] == "warning"


def test_logfmt_quotes_ambiguous_values_and_leaves_out_empty_ones() -> None:
    stream = io.StringIO()
    journal = Journal(stream, json=False)
    journal.warn(
        "skipped", path="/a b", why="x=y", note='it\'s "so"', odd="a\nb", empty="", nothing=None
    )
    journal.info("watching", dry_run=False, every=5.0, half=0.5, ports=[1, 2], version="é")
    journal.info("stopped")
    first, second, third = stream.getvalue().splitlines()
    at = parse(first)["time"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", at)
    assert first == (
        f'time={at} level=warning event=skipped path="/a b" why="x=y" note="it\'s \\"so\\"" '
        r'odd="a\\nb"'
    )
    assert second.partition(" ")[2] == (
        "level=info event=watching dry_run=false every=5 half=0.5 ports=1,2 version=é"
    )
    assert third.partition(" ")[2] == "level=info event=stopped"


@given(st.dictionaries(st.sampled_from(["path", "why", "agent", "odd"]), st.text()))
@example({"path": "x level=info event=removed", "odd": "\ud800\u2028\x85\x1b[2J"})
@example({"path": '"', "why": "\\", "agent": "=", "odd": "\n"})
def test_no_value_forges_a_line_or_a_field(fields: dict[str, str]) -> None:
    stream = io.StringIO()
    Journal(stream, json=False).warn("skipped", **fields)
    line, end, remaining = stream.getvalue().partition("\n")
    assert (end, remaining) == ("\n", "")
    assert line.isprintable()
    found = parse(line)
    assert found.keys() == {"time", "level", "event", *(key for key in fields if fields[key])}
    assert (found["level"], found["event"]) == ("warning", "skipped")


def test_a_terminal_gets_colours_and_no_other_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    Journal(stream, json=False).warn("skipped", path="\x1b[2Jx")
    assert "level=\x1b[1;33mwarning\x1b[0m" in stream.getvalue()
    plain = re.sub(r"\x1b\[[0-9;]+m", "", stream.getvalue())
    assert parse(plain.rstrip("\n"))["path"] == r"\x1b[2Jx"


@pytest.mark.parametrize(("value", "coloured"), [("1", False), ("", True)])
def test_no_color_leaves_no_escape_sequence(
    monkeypatch: pytest.MonkeyPatch, value: str, coloured: bool
) -> None:
    """https://no-color.org: it counts if it is not empty."""
    monkeypatch.setenv("NO_COLOR", value)
    stream = Terminal()
    Journal(stream, json=False).warn("skipped", path="/x")
    assert ("\x1b" in stream.getvalue()) == coloured


def test_a_line_that_cannot_be_written_is_counted() -> None:
    lost: list[int] = []
    stream = io.StringIO()
    journal = Journal(stream, json=True, on_error=lambda: lost.append(1))
    stream.close()
    journal.info("stopped")
    assert lost == [1]


def test_the_sidecar_does_not_import_rich() -> None:
    """It needs a tenth of the sidecar's memory and is not used."""
    script = (
        "import sys, reaper.cli, reaper.watch.loop, reaper.reports.journal, reaper.web.app; "
        "print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n")


def lock(data: bytes) -> Lock:
    return Lock(
        state_dir="s",
        agent="main",
        session="sid",
        path="/s/agents/main/sessions/sid.jsonl.lock",
        file=FileId(1, 2),
        uid=0,
        mtime_ms=0,
        ctime_ns=0,
        data=data,
        record=record.parse(data),
    )


RECORD = b"""{
  "pid": 4194303,
  "createdAt": "2026-05-24T10:29:15.171Z",
  "maxHoldMs": 1020000,
  "starttime": 99999999999
}
"""


UUID = "5b0d7f0a-1d5c-4a59-9a3e-0f6f1a2b3c4d"
FIELDS = {
    "state_dir": "openclaw",
    "agent": "main",
    "session": UUID,
    "session_key": "agent:main:main",
    "pid": 4194303,
    "age_seconds": 1384.2,
    "hold_proof": "not-open",
    "holder": "gone",
    "run": "no-run",
    "rule": 5,
    "verdict": "stale",
    "reasons": ["dead-pid"],
    "action": "remove",
    "outcome": "removed",
    "note": "",
}
"""The fields that a line about a lock may show; the whole record has more."""


def line_on_a_lock(*, data: bytes = RECORD, for_programs: bool = False, **fields: Any) -> str:
    stream = io.StringIO()
    found = {**FIELDS, **fields}
    journal = Journal(stream, json=for_programs, name_state_dir="state_dir" in fields)
    journal.lock(found["outcome"], found, lock(data), warn=True)
    return stream.getvalue().rstrip("\n")


def test_a_logfmt_line_says_which_lock_and_why_in_less_than_160_characters() -> None:
    line = line_on_a_lock(outcome="stuck", reasons=["hold-exceeded"])
    assert len(line) < 160
    assert line.partition(" ")[2] == (
        f"level=warning event=stuck session={UUID} pid=4194303 age=23m04s why=hold-exceeded "
        "key=agent:main:main"
    )
    held = line_on_a_lock(outcome="held", session_key=None, pid=None, verdict="held", reasons=[])
    assert held.endswith(f" session={UUID} age=23m04s why=held agent=main")
    pending = ["recovery-pending", "dead-pid"]
    line = line_on_a_lock(outcome="kept", reasons=pending)
    assert len(line) < 160
    assert parse(line)["why"] == "recovery-pending"
    fields = parse(line_on_a_lock(session_key="agent:other:main", state_dir="b", note="a note"))
    assert (fields["agent"], fields["state_dir"], fields["note"]) == ("main", "b", "a note")


def test_the_line_of_a_removal_has_its_evidence_and_the_whole_record() -> None:
    line = line_on_a_lock()
    assert len(line.partition(" agent=")[0]) < 160  # the part that a person reads first
    assert len(line) < 350
    found = parse(line)
    assert json.loads(found["record"]) == json.loads(RECORD)
    assert (found["hold_proof"], found["holder"], found["rule"]) == ("not-open", "gone", "5")
    assert "record" not in parse(line_on_a_lock(outcome="changed"))


@pytest.mark.parametrize("text", ["k" * 100_000, "\x1b" * 100_000, '"' * 100_000], ids=repr)
def test_a_line_is_bounded_for_names_of_any_length(text: str) -> None:
    names = ("state_dir", "agent", "session", "session_key", "note")
    fields: dict[str, Any] = dict.fromkeys(names, text[:4096])
    line = line_on_a_lock(data=text.encode(), **fields)
    assert len(line) < 3000
    stream = io.StringIO()
    Journal(stream, json=False).warn("skipped", path=text, reason=text, note=text)
    assert len(stream.getvalue()) < 3000
    assert parse(line)["event"] == "removed"


@pytest.mark.parametrize(
    ("data", "quoted"),
    [
        (RECORD, " ".join(RECORD.decode().split())),
        (b"x" * 300, "x" * 300),
        (b"x" * 301, "x" * 300 + "..."),
        (b"x" * 65_537, "x" * 300 + "..."),
        (b"\xff" * 400, r"\xff" * 300 + "..."),
        ("é".encode() * 200, "é" * 150 + "..."),
    ],
    ids=["gateway", "just fits", "too long", "oversized", "binary", "multibyte"],
)
def test_a_json_line_quotes_at_most_300_bytes_of_a_lock_file(data: bytes, quoted: str) -> None:
    assert json.loads(line_on_a_lock(data=data, for_programs=True))["record"] == quoted


def test_a_line_quotes_at_most_300_bytes_of_a_session_key() -> None:
    """A key in `sessions.json` can be as long as that file."""
    stream = io.StringIO()
    journal = Journal(stream, json=True)
    journal.warn("noted", session_key="k" * 100_000)
    journal.warn("noted", session_key="agent:main:a  b")
    long, short = map(json.loads, stream.getvalue().splitlines())
    assert long["session_key"] == "k" * 300 + "..."
    assert short["session_key"] == "agent:main:a  b"
