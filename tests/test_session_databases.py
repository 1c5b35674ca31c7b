"""State directories of OpenClaw 2026.8 and newer, with their sessions in SQLite."""

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
    """Return a database like that of an agent of 2026.7, in the mode that gateways use."""
    folder = tree.root / "agents" / "main" / "agent"
    folder.mkdir(parents=True)
    with closing(
        sqlite3.connect(folder / "openclaw-agent.sqlite", isolation_level=None)
    ) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE cache_entries (scope TEXT)")
        yield connection


def has_sessions(tree: Tree) -> bool:
    return SessionDatabases().hold_sessions_of(StateDir("s", str(tree.root)))


def test_a_database_with_transcripts_only_in_its_log_is_recognised(
    tree: Tree, database: sqlite3.Connection
) -> None:
    database.execute("CREATE TABLE IF NOT EXISTS transcript_events (session_id TEXT)")
    folder = tree.root / "agents" / "main" / "agent"
    assert b"transcript_events" not in (folder / "openclaw-agent.sqlite").read_bytes()
    assert has_sessions(tree)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert has_sessions(tree)


def test_a_database_for_other_data_does_not_count(tree: Tree, database: sqlite3.Connection) -> None:
    assert not has_sessions(tree)
    database.execute("INSERT INTO cache_entries VALUES ('CREATE TABLE transcript_events')")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert not has_sessions(tree)


def test_a_large_database_that_was_upgraded_is_recognised(
    tree: Tree, database: sqlite3.Connection
) -> None:
    """The pages of new tables are behind all older pages."""
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
def test_bytes_that_are_no_database_do_not_count(tree: Tree, size: int) -> None:
    folder = tree.root / "agents" / "main" / "agent"
    folder.mkdir(parents=True)
    header = b"SQLite format 3\0" + b"\x10\x00"
    for filler in (b"\0", b"\xff", b"\x05", b"\x0d"):
        (folder / "openclaw-agent.sqlite").write_bytes((header + filler * 8192)[:size])
        assert not has_sessions(tree)


def test_a_database_that_changes_is_read_again(tree: Tree, database: sqlite3.Connection) -> None:
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


def test_a_link_of_the_owner_to_the_agents_is_followed(
    tree: Tree, tmp_path: Path, database: sqlite3.Connection
) -> None:
    database.execute("CREATE TABLE transcript_events (session_id TEXT)")
    (tree.root / "agents").rename(tmp_path / "data")
    (tree.root / "agents").symlink_to("../data")
    assert has_sessions(tree)


def test_a_session_database_is_reported_and_older_locks_are_judged(
    tree: Tree, database: sqlite3.Connection
) -> None:
    database.execute("CREATE TABLE transcript_events (session_id TEXT)")
    tree.lock("dead", record(2**22 + 1))
    reaper = Reaper([StateDir("s", str(tree.root))], limits=Limits(), policy=Policy())
    found = list(reaper.look())
    reasons = [skip.reason for skip in found if isinstance(skip, Skipped)]
    assert reasons == ["sqlite-sessions"]
    assert not any(skip.failed for skip in found if isinstance(skip, Skipped))
    assert len(found) == 2


def test_list_reports_that_sessions_are_in_sqlite(tree: Tree, database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE transcript_events (session_id TEXT)")
    done = reap("list", "--state-dir", tree.root)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("sessions are in SQLite here") == 1
