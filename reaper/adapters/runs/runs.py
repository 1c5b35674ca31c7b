"""The end of a run, as the trajectory and the session store beside the lock show it.

Both are read within bounds. What is not understood is "unknown". docs/facts.md has the cases.
"""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from reaper.adapters.runs.session_store import Session, SessionStores, Store
from reaper.adapters.safe_open import open_folder, open_regular, read_at_most, stamp_of
from reaper.core.evidence import Run, Unmet
from reaper.core.json_text import NotJsonError, loads
from reaper.core.trajectory import FIRST_TAIL, TAIL, Trajectory, last_attempt, last_record

_FULL: Final = 10 * 1024 * 1024 - 64 * 1024
"""Bytes. Gateways that append during a run silently drop a record that would make the file larger
than 10 MiB. So a file of this size may lack a newer run, even its short `session.started`."""
_REMEMBERED: Final = 1000
"""Trajectories whose last attempt is remembered. It is read once for each change of the file."""
_POINTER_LIMIT: Final = 64 * 1024


class Runs:
    """Reads runs. Remembers each session store, and the last attempt of each trajectory, until the
    file changes.
    """

    def __init__(self) -> None:
        self._stores = SessionStores()
        self._attempts: dict[tuple[str, str, str], tuple[tuple[int, int, int], Trajectory]] = {}

    def run(self, session: Session, checkpoints: Callable[[], list[str]]) -> Run:
        """Return what the session's files say about its last run. Never raises OSError.

        `checkpoints` returns the names in the folder that may be checkpoint files. It is called
        only if a run was cut short, because only then they count.
        """
        run = self.by_store(session)
        trajectory, written_ms = self._trajectory(session)
        end = trajectory.end
        folder_fd = session.folder_fd
        transcript_ms, transcript_bytes = _transcript(f"{session.name}.jsonl", folder_fd)
        checkpoint_ms = None
        try:
            if end is not None and end.cut_short:
                checkpoint_ms = _youngest_checkpoint(session, checkpoints())
        except OSError:
            written_ms = None  # not known to be quiet
        if trajectory.unmet is Unmet.NO_TRAJECTORY:
            # Not a reason to remove a lock, but users want to know whether the run still writes.
            written_ms = written_ms or transcript_ms or None
        return run._replace(
            trajectory=trajectory.state,
            end=end,
            unmet=trajectory.unmet,
            other_run_ms=trajectory.other_run_ms,
            last_write_ms=None if written_ms is None else max(written_ms, transcript_ms),
            checkpoint_ms=checkpoint_ms,
            transcript_bytes=transcript_bytes,
        )

    def by_store(self, session: Session) -> Run:
        """Return what the session store alone says about the session's last run. If the holder is
        dead, nothing else counts. Never raises OSError.
        """
        return self._stores.run(session)

    def store(self, session: Session) -> Store:
        """Return the session's store as it is now. Never raises OSError."""
        return self._stores.store(session)

    def problem_of_session(self, session: Session) -> str:
        """Return why the store's last answer about this session was UNKNOWN, and what to do."""
        return self._stores.problem_of_session(session)

    def problem_of_store(self, session: Session) -> str:
        """Return why the folder's store as a whole is not understood, and what to do. Reads the
        store only if it has changed.
        """
        return self._stores.problem_of_store(session)

    def forget_all_but(self, folders: set[str]) -> None:
        """Forget all stores but those of these folders; a folder is `<state>/agents/<agent>`."""
        self._stores.forget_all_but(folders)

    def _trajectory(self, session: Session) -> tuple[Trajectory, int | None]:
        """Return what the session's trajectory shows, and its last change (epoch ms)."""
        try:
            fd, found = _open_trajectory(session)
        except (OSError, NotJsonError, ValueError):
            return Trajectory(), None
        try:
            return self._read(session, fd, found), found.st_mtime_ns // 1_000_000
        except OSError:
            return Trajectory(), None
        finally:
            os.close(fd)

    def _read(self, session: Session, fd: int, found: os.stat_result) -> Trajectory:
        """Read the last record; for a run that was cut short, also its whole last attempt. Raises
        OSError.
        """
        shown = _last_record(fd, found.st_size)
        if shown.unmet is not None:
            return shown
        other_owner = session.uid not in {None, found.st_uid}
        if session.through_symlink or other_owner or found.st_nlink != 1 or found.st_size >= _FULL:
            # 2026.5.22 silently writes nothing more to such a file (of another uid's, it cannot set
            # the mode). So a later run would not be visible.
            return shown._replace(unmet=Unmet.UNUSUAL_FILE)
        key, stamp = (session.state_dir, session.agent, session.name), stamp_of(found)
        known = self._attempts.pop(key, None)
        if known is None or known[0] != stamp:
            data = read_at_most(fd, _FULL)
            if last_record(data, whole=True) != shown:
                return Trajectory()  # overwritten between the two reads
            known = stamp, last_attempt(shown, data)
            if len(self._attempts) >= _REMEMBERED:
                del self._attempts[next(iter(self._attempts))]
        self._attempts[key] = known
        return known[1]


def _last_record(fd: int, size: int) -> Trajectory:
    for length in (FIRST_TAIL, TAIL):
        shown = last_record(_tail(fd, size, length), whole=length >= size)
        if shown is not None:
            return shown
    return Trajectory()


def _tail(fd: int, size: int, length: int) -> bytes:
    return read_at_most(fd, min(size, length), offset=max(0, size - length))


def _transcript(name: str, dir_fd: int) -> tuple[int, int | None]:
    """Return the last change (epoch ms, 0 if unknown) and the size (None if unknown). Without a
    transcript both are 0, because there is nothing to compact.
    """
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return 0, 0
    except OSError:
        return 0, None
    is_file = stat.S_ISREG(found.st_mode)
    return found.st_mtime_ns // 1_000_000, found.st_size if is_file else None


def _youngest_checkpoint(session: Session, names: list[str]) -> int | None:
    """Return when the session's youngest checkpoint was written (epoch ms), None if it has none.
    Raises OSError if the time of one cannot be read.
    """
    found = []
    for name in names:
        if name.startswith(f"{session.name}.checkpoint."):
            with suppress(FileNotFoundError):
                found.append(os.stat(name, dir_fd=session.folder_fd, follow_symlinks=False))
    return max((one.st_mtime_ns // 1_000_000 for one in found), default=None)


def _open_trajectory(session: Session) -> tuple[int, os.stat_result]:
    """Open the trajectory that the session's pointer file names, inside the state directory only;
    without a pointer, the one beside the lock. If the pointer leads elsewhere, no other file is
    tried, because the one beside the lock may be an older run's. Raises OSError, NotJsonError or
    ValueError.
    """
    state_dir, agent, name, folder_fd, *_ = session
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
    if target.endswith(".trajectory.jsonl"):
        raise ValueError("the pointer leads to another session's trajectory")
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
