"""State directories of OpenClaw 2026.8 and newer, whose sessions live in SQLite."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from reaper.adapters.session_databases import SessionDatabases
from reaper.core.finding import Skipped
from reaper.core.lock import StateDir
from reaper.core.policy import Policy
from reaper.core.verdict import Limits
from reaper.sweep import Reaper
from tests.conftest import Tree, record
from tests.processes import reap


@pytest.fixture
def database(tree: Tree) -> Iterator[sqlite3.Connection]:
    """An agent's database as 2026.7 has it too, in the mode in which gateways use it."""
    folder = tree.root / "agents" / "main" / "agent"
    folder.mkdir(parents=True)
    with closing(
        sqlite3.connect(folder / "openclaw-agent.sqlite", isolation_level=None)
    ) as the_closing:
        the_closing.execute("PRAGMA journal_mode=WAL")
        the_closing.execute("CREATE TABLE cache_entries (scope TEXT)")
        yield the_closing


def has_sessions(tree: Tree) -> bool:
    return SessionDatabases().hold_sessions_of(StateDir("s", str(tree.root)))


def test_a_database_with_transcripts_is_recognised_while_only_its_log_has_them(
    tree: Tree, database: sqlite3.Connection
) -> None:
    database.execute("CREATE TABLE IF NOT EXISTS transcript_events (session_id TEXT)")
    folder = tree.root / "agents" / "main" / "agent"
    assert b"transcript_events" not in (folder / "openclaw-agent.sqlite").read_bytes()
    assert has_sessions(tree)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert has_sessions(tree)


def test_a_database_for_other_things_is_none(tree: Tree, database: sqlite3.Connection) -> None:
    assert not has_sessions(tree)
    database.execute("INSERT INTO cache_entries VALUES ('CREATE TABLE transcript_events')")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert not has_sessions(tree)


def test_a_large_database_that_was_upgraded_is_recognised(
    tree: Tree, database: sqlite3.Connection
) -> None:
    """The pages of tables that come late lie behind all that was there before."""
    for _ in range(40):
        database.execute("INSERT INTO cache_entries VALUES (?)", ("x" * 500_000,))
    for number in range(60):
        database.execute(
            f"CREATE TABLE t{number} ({', '.join(f'c{column} TEXT' for column in range(60))})"
        )
    database.execute("CREATE TABLE transcript_events (session_id TEXT)")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = tree.root / "agents" / "main" / "agent" / "openclaw-agent.sqlite"
    assert path.read_bytes().index(b"CREATE TABLE transcript_events") > 10 * 1024 * 1024
    assert has_sessions(tree)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 4096, 8192])
def test_bytes_that_are_no_database_are_none(tree: Tree, size: int) -> None:
    folder = tree.root / "agents" / "main" / "agent"
    folder.mkdir(parents=True)
    header = b"SQLite format 3\0" + b"\x10\x00"
    for filler in (b"\0", b"\xff", b"\x05", b"\x0d"):
        (folder / "openclaw-agent.sqlite").write_bytes((header + filler * 8192)[:size])
        assert not has_sessions(tree)


def test_a_database_that_changes_is_looked_at_again(
    tree: Tree, database: sqlite3.Connection
) -> None:
    databases, state = SessionDatabases(), StateDir("s", str(tree.root))
    assert not databases.hold_sessions_of(state)
    assert not databases.hold_sessions_of(state)
    database.execute("CREATE TABLE transcript_events (session_id TEXT)")
    assert databases.hold_sessions_of(state)


@pytest.mark.parametrize("name", ["agent", "agent/openclaw-agent.sqlite"])
def test_no_symlink_is_followed(tree: Tree, tmp_path: Path, name: str) -> None:
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "openclaw-agent.sqlite").write_bytes(b"CREATE TABLE transcript_events")
    link = tree.root / "agents" / "main" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(real if name == "agent" else real / "openclaw-agent.sqlite")
    assert not has_sessions(tree)


def test_the_owners_link_to_the_agents_is_followed(
    tree: Tree, tmp_path: Path, database: sqlite3.Connection
) -> None:
    database.execute("CREATE TABLE transcript_events (session_id TEXT)")
    (tree.root / "agents").rename(tmp_path / "data")
    (tree.root / "agents").symlink_to("../data")
    assert has_sessions(tree)


def test_it_is_said_in_each_full_pass_and_what_older_gateways_left_is_judged(
    tree: Tree, database: sqlite3.Connection
) -> None:
    database.execute("CREATE TABLE transcript_events (session_id TEXT)")
    tree.lock("dead", record(2**22 + 1))
    reaper = Reaper([StateDir("s", str(tree.root))], limits=Limits(), policy=Policy())
    found = list(reaper.look())
    said = [skip.reason for skip in found if isinstance(skip, Skipped)]
    assert said == ["sqlite-sessions"]
    assert not any(skip.failed for skip in found if isinstance(skip, Skipped))
    assert len(found) == 2


def test_a_look_says_that_there_is_nothing_to_do(tree: Tree, database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE transcript_events (session_id TEXT)")
    done = reap("list", "--state-dir", tree.root)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("sessions are in SQLite here") == 1
