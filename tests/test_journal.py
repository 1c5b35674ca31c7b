"""The journal's lines, as programs and people get them."""

import io
import json
import re
import subprocess
import sys

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


def test_the_sidecar_loads_neither_rich_nor_asyncio() -> None:
    """Together they took a sixth of its memory, and nothing of them was used."""
    script = (
        "import sys, reaper.cli, reaper.watch, reaper.reports.journal, reaper.reports.web; "
        "print(*sorted({'rich', 'asyncio'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n")
