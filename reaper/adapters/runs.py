"""The end of a run, as trajectory and session store beside the lock tell it.

Both are read within bounds, and what cannot be understood is "unknown". How each behaves, case by
case: docs/facts.md.
"""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from reaper.adapters.files import open_folder, open_regular, read_at_most
from reaper.adapters.session_store import Session, SessionStores, stamp_at
from reaper.core.evidence import Run, RunEnd, RunState
from reaper.core.json_text import NotJsonError, loads
from reaper.core.lock import parse_date

_TAIL: Final = 512 * 1024
"""Bytes read of a trajectory's end; upstream writes no record longer than 256 KiB."""
_FIRST_TAIL: Final = 8 * 1024
"""`session.ended` is short; a longer last record is read in a second go."""
_FULL: Final = 10 * 1024 * 1024 - 64 * 1024
"""Bytes. Upstream silently drops what would make a trajectory larger than 10 MiB, so a larger one
may show none of a newer run's records, not even its short `session.started`.
"""
_POINTER_LIMIT: Final = 64 * 1024


class Runs:
    """Reads runs; remembers each session store for as long as the file does not change."""

    def __init__(self) -> None:
        self._stores = SessionStores()

    def run(self, session: Session, checkpoints: Callable[[], list[str]]) -> Run:
        """Return what the witnesses say of the session's last run. Never raises OSError.

        `checkpoints` gives the names in the folder that may be checkpoint files; asked only where
        a run was cut short, which alone makes them count.
        """
        run = self.by_store(session)
        state, end, written_ms = _trajectory(session)
        folder_fd = session.folder_fd
        transcript_ms, transcript_bytes = _transcript(f"{session.name}.jsonl", folder_fd)
        prefix = f"{session.name}.checkpoint."
        try:
            names = checkpoints() if end is not None and end.cut_short else []
        except OSError:
            names, written_ms = [], None  # not known to be quiet
        found = [_mtime_ms(name, folder_fd) for name in names if name.startswith(prefix)]
        return run._replace(
            trajectory=state,
            end=end,
            last_write_ms=None if written_ms is None else max(written_ms, transcript_ms),
            checkpoint_ms=max((ms for ms in found if ms is not None), default=None),
            transcript_bytes=transcript_bytes,
        )

    def by_store(self, session: Session) -> Run:
        """Return what the session store alone says of the session's last run: all that counts
        once its holder is dead. Never raises OSError.
        """
        return self._stores.run(session)

    def store_problem(self, session: Session) -> str:
        """Return why the store's latest word on this session was UNKNOWN, and what to do."""
        return self._stores.problem(session)

    def store_stamp(self, folder_fd: int) -> tuple[int, ...] | None:
        """Return what changes with each write of the session store; None where there is none."""
        with suppress(OSError):
            return stamp_at(folder_fd)
        return None

    def forget_all_but(self, folders: set[str]) -> None:
        """Drop the stores of folders that are gone; a folder is `<state>/agents/<agent>`."""
        self._stores.forget_all_but(folders)


def _transcript(name: str, dir_fd: int) -> tuple[int, int | None]:
    """Return last change (epoch ms, 0 where unknown) and size; without one there is nothing to
    compact.
    """
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return 0, 0
    except OSError:
        return 0, None
    is_file = stat.S_ISREG(found.st_mode)
    return found.st_mtime_ns // 1_000_000, found.st_size if is_file else None


def _mtime_ms(name: str, dir_fd: int) -> int | None:
    with suppress(OSError):
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        return found.st_mtime_ns // 1_000_000
    return None


def _trajectory(session: Session) -> tuple[RunState, RunEnd | None, int | None]:
    """Return state, end and last change (epoch ms) of the session's trajectory."""
    try:
        fd, found = _open_trajectory(session)
    except (OSError, NotJsonError, ValueError):
        return RunState.UNKNOWN, None, None
    try:
        record = _last_record(fd, found.st_size)
        cut_short = _was_cut_short(record)
        started_ms = _start_of(fd, found.st_size, record) if cut_short else None
    except OSError:
        return RunState.UNKNOWN, None, None
    finally:
        os.close(fd)
    written_ms = found.st_mtime_ns // 1_000_000
    kind = record.get("type") if isinstance(record, dict) else None
    ended = kind == "session.ended"
    if not isinstance(kind, str) or (ended and found.st_size > _FULL):
        return RunState.UNKNOWN, None, written_ms
    if not ended:
        return RunState.RUNNING, None, written_ms
    stamp, data = record.get("ts"), record.get("data")
    at_ms = parse_date(stamp) if isinstance(stamp, str) else None
    if at_ms is None or not isinstance(data, dict):
        return RunState.UNKNOWN, None, written_ms
    end = RunEnd(at_ms=at_ms, cut_short=cut_short, started_ms=started_ms)
    return RunState.ENDED, end, written_ms


def _was_cut_short(last: Any) -> bool:  # noqa: ANN401  # any JSON value
    """Tell it from a `session.ended`. A time-out at a model call ends an attempt, not the run:
    upstream may compact, holding the lock, and try again.
    """
    if not isinstance(last, dict) or last.get("type") != "session.ended":
        return False
    data = last.get("data")
    if not isinstance(data, dict):
        return False
    in_tool = data.get("timedOutDuringToolExecution") is True
    return in_tool or (data.get("aborted") is True and data.get("timedOut") is not True)


def _open_trajectory(session: Session) -> tuple[int, os.stat_result]:
    """Open the trajectory where its pointer file says, inside the state directory only; without a
    pointer, beside the lock. A pointer that leads elsewhere is final: what lies beside the lock
    may then be an older run's. Raises OSError, NotJsonError or ValueError.
    """
    state_dir, agent, name, folder_fd, _ = session
    beside = f"{name}.trajectory.jsonl"
    try:
        pointer_fd, _ = open_regular(f"{name}.trajectory-path.json", dir_fd=folder_fd)
    except FileNotFoundError:
        return open_regular(beside, dir_fd=folder_fd)
    try:
        pointer = loads(read_at_most(pointer_fd, _POINTER_LIMIT))
    finally:
        os.close(pointer_fd)
    target = pointer.get("runtimeFile") if isinstance(pointer, dict) else None
    if not isinstance(target, str):
        raise ValueError("the pointer names no file")  # noqa: TRY004  # content, not a type error
    # The gateway's own path for the state directory can differ from ours (another mount point).
    if target.endswith(f"/agents/{agent}/sessions/{beside}"):
        return open_regular(beside, dir_fd=folder_fd)
    for root in {state_dir, os.path.realpath(state_dir)}:
        if target.startswith(f"{root}/"):
            return _open_below(root, target.removeprefix(f"{root}/").split("/"))
    raise ValueError("the pointer leads out of the state directory")


def _open_below(root: str, parts: list[str]) -> tuple[int, os.stat_result]:
    if not all(part not in {"", ".", ".."} and "\0" not in part for part in parts):
        raise ValueError("the pointer leads out of the state directory")
    fd = open_folder(root)
    try:
        for part in parts[:-1]:
            deeper = open_folder(part, dir_fd=fd)
            os.close(fd)
            fd = deeper
        return open_regular(parts[-1], dir_fd=fd)
    finally:
        os.close(fd)


def _start_of(fd: int, size: int, last: Any) -> int | None:  # noqa: ANN401  # any JSON value
    """Return when the run of a `session.ended` started (epoch ms), from its `session.started` in
    the tail; None where that is not there, or says nothing.
    """
    run = last.get("runId")
    data = read_at_most(fd, min(size, _TAIL), offset=max(0, size - _TAIL))
    for line in reversed(data.split(b"\n")):
        if b'"session.started"' not in line:
            continue
        with suppress(NotJsonError):
            record = loads(line)
            if isinstance(record, dict) and record.get("type") == "session.started":
                stamp = record.get("ts")
                same = run is not None and record.get("runId") == run
                return parse_date(stamp) if same and isinstance(stamp, str) else None
    return None


def _last_record(fd: int, size: int) -> Any:  # noqa: ANN401  # any JSON value
    """Return the last line's value; None where it is unfinished, too long or no JSON."""
    for tail in (_FIRST_TAIL, _TAIL):
        start = max(0, size - tail)
        data = read_at_most(fd, size - start, offset=start)
        if not data.endswith(b"\n"):
            return None
        head, newline, line = data[:-1].rpartition(b"\n")
        if newline or start == 0:
            with suppress(NotJsonError):
                return loads(line if newline else data[:-1])
            return None
        del head
    return None
