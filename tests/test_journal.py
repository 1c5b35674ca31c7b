"""The journal's lines, as programs and people get them."""

import io
import json
import re
import subprocess
import sys

import pytest

from reaper.core.lock import FileId, Lock
from reaper.core.record import parse
from reaper.reports.journal import Journal

_NOW = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_for_programs_ends_in_event_level_and_time() -> None:
    stream = io.StringIO()
    journal = Journal(stream, json=True)
    journal.info("watching", what=["a", "b\n"], odd="\x1b[31mé", count=1, nothing=None, is_it=True)
    journal.warn("skipped", path="/x y")
    first, second = stream.getvalue().splitlines()
    found = json.loads(first)
    assert re.fullmatch(_NOW, found.pop("timestamp"))
    assert list(found.items()) == [
        ("what", "a,b\\n"),
        ("odd", "\\x1b[31mé"),
        ("count", 1),
        ("nothing", None),
        ("is_it", True),
        ("event", "watching"),
        ("level", "info"),
    ]
    assert first.isascii()
    assert json.loads(second)["level"] == "warning"


def test_a_line_for_people_parts_its_words_and_quotes_what_would_run_together() -> None:
    stream = io.StringIO()
    journal = Journal(stream, json=False)
    journal.warn("skipped", path="/a b", why="x=y", note="it's", empty="", age=1.5, odd="a\nb")
    journal.info("stopped")
    first, second, _ = stream.getvalue().split("\n")
    assert re.fullmatch(
        _NOW + r" \[warning  \] skipped {24}path='/a b' why='x=y' note=\"it's\" empty= age=1.5 "
        r"odd=a\\nb",
        first,
    )
    assert re.fullmatch(_NOW + r" \[info     \] stopped", second)


def test_a_terminal_gets_colours_and_no_other_escape() -> None:
    stream = Terminal()
    Journal(stream, json=False).warn("skipped", path="\x1b[2Jx")
    assert "\x1b[1;33mwarning" in stream.getvalue()
    plain = re.sub(r"\x1b\[[0-9;]+m", "", stream.getvalue())
    assert plain.isascii()
    assert plain.rstrip("\n").isprintable()
    assert plain.endswith("path=\\x1b[2Jx\n")


def test_a_line_that_cannot_be_written_is_counted() -> None:
    lost: list[int] = []
    stream = io.StringIO()
    journal = Journal(stream, json=True, on_error=lambda: lost.append(1))
    stream.close()
    journal.info("stopped")
    assert lost == [1]


def test_the_sidecar_does_not_load_rich() -> None:
    """It takes a tenth of its memory, and nothing of it is used."""
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
        record=parse(data),
    )


RECORD = b"""{
  "pid": 4194303,
  "createdAt": "2026-05-24T10:29:15.171Z",
  "maxHoldMs": 1020000,
  "starttime": 99999999999
}
"""


@pytest.mark.parametrize("for_programs", [True, False])
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
def test_a_line_quotes_at_most_300_bytes_of_a_lock_file(
    data: bytes, quoted: str, for_programs: bool
) -> None:
    stream = io.StringIO()
    names = (
        "state_dir agent session session_key pid age_seconds verdict reasons action outcome note"
    )
    fields = dict.fromkeys(names.split())
    Journal(stream, json=for_programs).lock("failed", fields, lock(data))
    line = stream.getvalue()
    if for_programs:
        assert json.loads(line)["record"] == quoted
    else:
        assert quoted[:300] in line.replace("\\\\", "\\")
    assert len(line) < 300 * 5 + 400


def test_a_line_quotes_at_most_300_bytes_of_a_session_key() -> None:
    """A key comes from `sessions.json`, so an agent can make it as long as that file."""
    stream = io.StringIO()
    journal = Journal(stream, json=True)
    journal.warn("noted", session_key="k" * 100_000)
    journal.warn("noted", session_key="agent:main:a  b")
    long, short = map(json.loads, stream.getvalue().splitlines())
    assert long["session_key"] == "k" * 300 + "..."
    assert short["session_key"] == "agent:main:a  b"
