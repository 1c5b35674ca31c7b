"""Finding the locks that are no session locks: known names in known folders, and nothing else."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from reaper.adapters.locks import reading
from reaper.adapters.locks.names import ASIDE, PREFIX
from reaper.adapters.locks.reading import Folder
from reaper.adapters.safe_open import open_folder, open_own_folder
from reaper.core.finding import Skipped
from reaper.core.lock import StateDir
from reaper.core.other_locks import GUARD_SUFFIX, PLACES, Place, fits, place_of

MOST_NAMES: Final = 1000
"""Locks of one folder that are looked at; OpenClaw's own are some ten."""

_Found = tuple[int, str, str]
"""An open folder, its path below the state directory, and the agent that it belongs to or ""."""


def folders_of_places(state: StateDir, skipped: list[Skipped]) -> Iterator[Folder]:
    """Yield each folder that has places of other locks, open, with the names of those locks in
    `locks`, and in `asides` those that a removal left. A folder is closed when its consumer leaves
    its `with`.

    Symlinks are followed as those of `reading.folders` are. What cannot be looked at goes into
    `skipped`, unless a pass over the session locks looks at it too and reports it. Never raises
    OSError.
    """
    by_folder: dict[tuple[str, ...], list[Place]] = {}
    for place in PLACES:
        by_folder.setdefault(place.folder, []).append(place)
    for parts, places in by_folder.items():
        try:
            root = open_folder(state.path)
        except OSError:
            return  # a pass over the session locks reports it
        walk = _Walk(state, parts, os.fstat(root).st_uid, skipped)
        for fd, below, agent in walk.open_below(root):
            folder = Folder(
                state, agent, fd, through_symlink=True, below=below, places=tuple(places)
            )
            try:
                _read_names(folder, is_listed=parts != _SESSIONS)
            except OSError as error:
                os.close(fd)
                skipped.append(reading.skip(folder.path, error))
            else:
                yield folder


class _Walk(NamedTuple):
    """Opens the folders that the parts of one path lead to; one after the other, so that any number
    of agents needs few descriptors.
    """

    state: StateDir
    parts: tuple[str, ...]
    owner: int
    skipped: list[Skipped]

    def open_below(
        self, fd: int, depth: int = 0, below: str = "", agent: str = ""
    ) -> Iterator[_Found]:
        """Yield the folders below this one, and close it."""
        if depth == len(self.parts):
            yield fd, below, agent
            return
        part = self.parts[depth]
        try:
            for name in _names(fd, part):
                path = f"{below}/{name}".lstrip("/")
                is_agent = self.parts[0] == "agents" and depth == 1
                try:
                    opened = _open(fd, name, self.owner, is_listed="*" in part)
                except OSError as error:
                    # Where nothing can be said of the name, its folder cannot be looked at.
                    blamed = self.parts[: depth + _is_there(name, fd)]
                    if _is_news(error, blamed):
                        self.skipped.append(reading.skip(f"{self.state.path}/{path}", error))
                else:
                    yield from self.open_below(opened, depth + 1, path, name if is_agent else agent)
        except OSError as error:  # the names cannot be listed
            if _is_news(error, self.parts[:depth]):
                self.skipped.append(reading.skip(f"{self.state.path}/{below}", error))
        finally:
            os.close(fd)


def _names(fd: int, part: str) -> list[str]:
    return [name for name in sorted(os.listdir(fd)) if fits(part, name)] if "*" in part else [part]


def _open(fd: int, name: str, owner: int, *, is_listed: bool) -> int:
    """Open a folder. One that is not named in the table counts only if it is the owner's and no
    symlink: an agent's that is one OpenClaw ignores, and another uid's temporary files are those
    of another gateway.
    """
    if not is_listed:
        return open_own_folder(name, dir_fd=fd, owner=owner)[0]
    if os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid != owner:
        raise FileNotFoundError(errno.ENOENT, "another uid's", name)
    return open_folder(name, dir_fd=fd)


def _is_there(name: str, fd: int) -> bool:
    with suppress(OSError):
        os.stat(name, dir_fd=fd, follow_symlinks=False)
        return True
    return False


_SESSIONS: Final = ("agents", "*", "sessions")
_LOOKED_AT_FOR_SESSIONS: Final = ((), _SESSIONS[:1], _SESSIONS[:2], _SESSIONS)


def _is_news(error: OSError, parts: tuple[str, ...]) -> bool:
    """Whether it is to be reported that a folder cannot be opened."""
    if isinstance(error, FileNotFoundError) or parts in _LOOKED_AT_FOR_SESSIONS:
        return False
    return not (parts and "*" in parts[-1] and error.errno in {errno.ENOTDIR, errno.ELOOP})


def _read_names(folder: Folder, *, is_listed: bool) -> None:
    """Find the locks of the folder's places; where it is not listed, those of exact names. Raises
    OSError.
    """
    if not is_listed:
        names = [place.name for place in folder.places]
        names += [name + GUARD_SUFFIX for name in names]
        folder.locks = [name for name in names if _is_there(name, folder.fd)]
        return
    with os.scandir(folder.fd) as entries:
        for entry in entries:
            name, found = entry.name, folder.locks
            if name.startswith(PREFIX) and (aside := ASIDE.fullmatch(name)):
                name, found = aside["name"] or "", folder.asides
            if place_of(name, folder.places) is None:
                continue
            if len(folder.locks) + len(folder.asides) < MOST_NAMES:
                found.append(entry.name)
            else:
                folder.locks_left_out += 1
    folder.locks.sort()
