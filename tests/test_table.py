"""What `reaper list` and `sweep` show to people, and that it can be used as shown."""

import io
import re
import shlex
from typing import Any

import pytest

from reaper.core.evidence import HolderState, Run, StoreStatus
from reaper.core.policy import Outcome
from reaper.reports.advice import advice
from reaper.reports.table import COLUMNS, MOST_ROWS, Table
from tests.conftest import DEAD, HoldLock, Tree, record
from tests.processes import reap
from tests.test_advice import found
from tests.test_cli import on_a_terminal
from tests.test_verdict import NO_PROOF, NOT_OPEN, a_lock, evidence

UUID = "{:08x}-0001-4000-8000-000000000001"
KEY = "agent:main:telegram:group:-1001234567890"


def a_look(session: str = "sid", key: str | None = None, **kwargs: Any) -> Any:
    lock = a_lock()._replace(session=session)
    run = Run(store=StoreStatus.ENDED, session_key=key)
    return found(evidence(NOT_OPEN, HolderState.GONE, lock=lock, run=run), **kwargs)


def lines(
    *looks: Any, width: int | None = None, coloured: bool = False, but: tuple[str, ...] = ()
) -> list[str]:
    """Return the table of some locks."""
    stream = io.StringIO()
    columns = [name for name in COLUMNS if name not in {"result", "state dir", *but}]
    table = Table(stream, columns=columns, width=width, coloured=coloured)
    for look in looks:
        table.add(look, advice(look).brief, shown=True)
    table.end()
    return stream.getvalue().splitlines()


def test_a_lock_has_one_line_with_the_reason_and_the_next_step() -> None:
    header, line = lines(a_look(UUID.format(1), KEY))
    assert header.split() == ["ID", "AGE", "PID", "VERDICT", "WHY", "NEXT", "SESSION"]
    cells = ["00000001", "10m00s", "7", "STALE", "process is gone", "sweep", KEY]
    assert re.split("  +", line) == cells


def test_without_a_key_the_agent_is_shown() -> None:
    assert lines(a_look())[1].endswith("  (agent main)")


@pytest.mark.parametrize(
    ("width", "missing"), [(200, ()), (100, ()), (80, ("PID",)), (60, ("PID", "SESSION"))]
)
def test_on_a_narrow_terminal_columns_are_left_out(width: int, missing: tuple[str, ...]) -> None:
    table = lines(*(a_look(UUID.format(number), KEY) for number in range(20)), width=width)
    assert len(table) == 21
    assert max(map(len, table)) <= width
    assert {"ID", "AGE", "PID", "VERDICT", "WHY", "NEXT", "SESSION"} - set(table[0].split()) == set(
        missing
    )
    for number, line in enumerate(table[1:]):
        assert line.startswith(f"{number:08x}  10m00s")
        assert "process is gone" in line


def test_without_a_terminal_nothing_is_cut_and_spaces_align_the_columns() -> None:
    looks = [a_look(UUID.format(number), KEY * number or None) for number in range(3)]
    table = lines(*looks)
    assert table[3].endswith(f"  {KEY * 2}")
    assert "\t" not in "".join(table)
    starts = {line.index("STALE") for line in table[1:]}
    assert starts == {table[0].index("VERDICT")}
    assert {line.index("process is gone") for line in table[1:]} == {table[0].index("WHY")}


def test_wide_characters_count_as_two_columns() -> None:
    first, second = lines(a_look("日本", KEY), a_look("sid", KEY))[1:]
    assert first.index("10m00s") + 2 == second.index("10m00s")


def test_colours_change_no_width() -> None:
    plain, coloured = (lines(a_look(), coloured=in_colour) for in_colour in (False, True))
    assert "\x1b[33mSTALE\x1b[0m" in coloured[1]
    assert [re.sub(r"\x1b\[\d*m", "", line) for line in coloured] == plain


def test_beyond_a_number_of_rows_locks_are_written_at_once_with_whole_ids() -> None:
    stream = io.StringIO()
    table = Table(stream, columns=["id", "verdict"], width=80, coloured=False)
    for number in range(MOST_ROWS):
        table.add(
            a_look(UUID.format(number)), advice(a_look(UUID.format(number))).brief, shown=True
        )
    assert stream.getvalue() == ""
    for number in range(MOST_ROWS, MOST_ROWS + 5):
        table.add(
            a_look(UUID.format(number)), advice(a_look(UUID.format(number))).brief, shown=True
        )
        assert stream.getvalue().endswith(f"{UUID.format(number)}  STALE\n")
    assert len(stream.getvalue().splitlines()) == MOST_ROWS + 6


def test_short_ids_are_unique_among_locks_that_are_not_shown_too() -> None:
    stream = io.StringIO()
    table = Table(stream, columns=["id"], width=80, coloured=False)
    shown_id, hidden_id = UUID.format(1), UUID.format(1).replace("-0001-", "-f001-")
    table.add(a_look(hidden_id), advice(a_look(hidden_id)).brief, shown=False)
    table.add(a_look(shown_id), advice(a_look(shown_id)).brief, shown=True)
    table.end()
    assert stream.getvalue() == "ID\n00000001-0\n"


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (evidence(), "in use"),
        (evidence(age=1200.0), "held too long"),
        (evidence(NOT_OPEN), "file not open"),
        (evidence(NOT_OPEN, HolderState.REUSED), "run may resume"),
        (evidence(NO_PROOF, HolderState.GONE, proof_note="no-rights"), "no rights"),
        (evidence(NO_PROOF, HolderState.GONE, proof_note="file-system:nfs"), "file system"),
        (evidence(NO_PROOF, HolderState.GONE, proof_note="symlink"), "symlink"),
        (evidence(NO_PROOF, HolderState.GONE), "cannot check"),
    ],
)  # fmt: skip
def test_the_reason_is_a_few_plain_words(seen: Any, why: str) -> None:
    assert re.split("  +", lines(found(seen))[1])[4] == why


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (Outcome.REMOVED, "removed"),
        (Outcome.WOULD_REMOVE, "would be removed"),
        (Outcome.VANISHED, "gone"),
        (Outcome.FAILED, "failed"),
    ],
)
def test_a_sweep_shows_the_result_for_each_lock(outcome: Outcome, result: str) -> None:
    stream = io.StringIO()
    table = Table(stream, columns=["id", "result"], width=None, coloured=False)
    table.add(a_look(outcome=outcome), advice(a_look(outcome=outcome)).brief, shown=True)
    table.end()
    assert stream.getvalue().endswith(f"sid  {result}\n")


# With the program


def ids_of(table: str) -> list[str]:
    return [line.split()[0] for line in table.splitlines()[1:]]


def test_each_id_and_key_that_is_shown_is_accepted(tree: Tree) -> None:
    names = [
        UUID.format(7),
        UUID.format(7).replace("-0001-", "-f001-"),
        f"{UUID.format(7)}-topic-5",
    ]
    names += ["main", "a-long-name-of-somebody", "name with spaces in it", "dots...in.the.middle"]
    keys = {f"{KEY}{number}": name for number, name in enumerate(names)}
    for name in names:
        tree.lock(name, record(DEAD))
    tree.store({key: {"sessionId": name, "status": "done"} for key, name in keys.items()})
    where = ("--state-dir", tree.root)
    shown = reap("list", *where).stdout.splitlines()
    for line in shown[1:]:
        short = re.split("  +", line)[0]
        explained = reap("explain", short, *where).stdout.splitlines()
        (name,) = [session for session in names if explained[0].endswith(f"/{session}.jsonl.lock")]
        assert any(keys_of == name and key in line for key, keys_of in keys.items())
    narrow = on_a_terminal("list", *where, columns=100).replace("\r", "").splitlines()
    cut = [re.split("  +", line)[-1] for line in narrow[1 : 1 + len(names)]]
    assert all("..." in key for key in cut)
    assert all(reap("explain", key, *where).stdout for key in cut)
    for line in shown[1:]:
        short = re.split("  +", line)[0]
        assert reap("unlock", short, *where).returncode == 0
    assert not list(tree.sessions().glob("*.lock"))


@pytest.mark.parametrize("command", ["explain", "unlock"])
def test_a_short_name_that_fits_several_locks_is_an_error_that_lists_them(
    tree: Tree, command: str
) -> None:
    for number in range(3):
        tree.lock(UUID.format(0xABCD0000 + number), record(DEAD))
    tree.store({KEY: {"sessionId": UUID.format(0xABCD0001), "status": "done"}})
    done = reap(command, "abcd", "--state-dir", tree.root)
    assert (done.returncode, done.stdout) == (1, "")
    assert "abcd fits 3 locks. Type more of the one that you mean:" in done.stderr
    assert f"{UUID.format(0xABCD0000)}  agent main\n" in done.stderr
    assert f"{UUID.format(0xABCD0001)}  {KEY}\n" in done.stderr
    assert len(list(tree.sessions().glob("*.lock"))) == 3


def test_some_of_many_locks_that_a_short_name_fits_are_listed(tree: Tree) -> None:
    for number in range(30):
        tree.lock(f"session-{number:02}", record(DEAD))
    done = reap("explain", "session", "--state-dir", tree.root)
    assert "session fits 30 locks" in done.stderr
    assert len(done.stderr.splitlines()) == 22
    assert done.stderr.endswith("  ...\n")


def test_force_accepts_a_short_name_only_if_it_can_mean_no_other_session(
    tree: Tree, hold: HoldLock
) -> None:
    where = ("--force", "--state-dir", tree.root)
    uuid, name = hold(UUID.format(7)), hold("somebody-else")
    assert reap("unlock", UUID.format(7)[:8], *where).returncode == 0
    assert not uuid.path.exists()
    done = reap("unlock", "somebody", *where)
    assert done.returncode == 1
    assert f"with --force, give the path: {name.path}" in done.stderr
    (command,) = (line for line in done.stdout.splitlines() if line.startswith("  fingerprint"))
    fingerprint = command.split()[-1]
    assert reap("unlock", "somebody", "--fingerprint", fingerprint, *where).returncode == 0
    assert not name.path.exists()


def test_an_exact_name_is_found_before_any_longer_one(tree: Tree) -> None:
    for name in ("abcdef12", "abcdef12-and-more", "main", "main-2"):
        tree.lock(name, record(DEAD))
    for name in ("abcdef12", "main"):
        output = reap("explain", name, "--state-dir", tree.root).stdout
        assert [line for line in output.splitlines() if line.startswith("/")] == [
            f"{tree.sessions()}/{name}.jsonl.lock"
        ]


def test_the_summary_is_on_standard_error_unless_that_is_a_terminal(tree: Tree) -> None:
    tree.lock("dead", record(DEAD))
    where = ("--state-dir", tree.root)
    for command in (("list",), ("sweep", "--dry-run")):
        done = reap(*command, *where)
        assert len(done.stdout.splitlines()) == 2
        assert "reaper: 1 lock: 1 stale" in done.stderr
    assert reap("sweep", "--dry-run", "-q", *where).stderr == ""
    shown = on_a_terminal("list", *where, columns=200)
    assert "\n1 lock: 1 stale\r\n" in shown
    assert "1 lock" not in on_a_terminal("sweep", "--dry-run", "-q", *where, columns=200)


def test_an_unreadable_file_is_never_reported_as_no_locks(tree: Tree) -> None:
    (tree.sessions() / "gone.jsonl.lock").symlink_to("nowhere")
    output = reap("list", "--state-dir", tree.root).stderr
    assert "no locks found, but 1 file or folder cannot be checked\n" in output
    tree.lock("dead", record(DEAD))
    output = reap("list", "--state-dir", tree.root).stderr
    assert "1 lock: 1 stale; 1 file or folder cannot be checked\n" in output


def test_the_commands_that_are_shown_work(tree: Tree, hold: HoldLock) -> None:
    hold(UUID.format(1), age=7200)
    tree.lock("dead", record(DEAD))
    output = reap("list", "--state-dir", tree.root).stderr
    sweep, explain = (shlex.split(command) for command in re.findall("`([^`]*)`", output))
    assert explain[:-1] == ["reaper", "explain", "--state-dir", str(tree.root)]
    assert reap(*explain[1:-1], "00000001").returncode == 3
    assert reap(*sweep[1:]).returncode == 3
    assert not (tree.sessions() / "dead.jsonl.lock").exists()
    (command,) = re.findall(
        "^  command +(.*)$", reap(*explain[1:-1], "00000001").stdout, re.MULTILINE
    )
    assert reap(*shlex.split(command)[1:]).returncode == 0
    assert not list(tree.sessions().glob("*.lock"))
    hold("overdue", age=7200)
    policy = ("--on-overdue", "remove", "--abandoned-after", "90.5")
    output = reap("list", *policy, "--state-dir", tree.root).stderr
    (sweep,) = (shlex.split(command) for command in re.findall("`([^`]*)`", output))
    assert sweep[4:] == ["--on-overdue", "remove", "--abandoned-after", "90.5s"]
    assert reap(*sweep[1:]).returncode == 0
    assert not list(tree.sessions().glob("*.lock"))
    variable = {"REAPER_STATE_DIR": str(tree.root)}
    tree.lock("dead", record(DEAD))
    assert "`reaper sweep`" in reap("list", env=variable).stderr
