"""Finds the locks that are not session locks: known names in known folders, and nothing else."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from reaper.adapters.locks import reading
from reaper.adapters.locks.names import PREFIX, PRIVATE_NAME
from reaper.adapters.locks.reading import Folder
from reaper.adapters.safe_open import open_folder, open_own_folder
from reaper.core.finding import Skipped
from reaper.core.lock import StateDir
from reaper.core.other_locks import GUARD_SUFFIX, PLACES, Place, fits, place_of

MOST_NAMES: Final = 1000
"""Locks of one folder that are looked at. OpenClaw has about ten."""


class _Node(NamedTuple):
    """A folder of the table: its places, and the folders below it by path component."""

    places: list[Place]
    below: "dict[str, _Node]"


def _table() -> _Node:
    root = _Node([], {})
    for place in PLACES:
        node = root
        for part in place.folder:
            node = node.below.setdefault(part, _Node([], {}))
        node.places.append(place)
    return root


_TABLE: Final = _table()


def folders_of_places(state: StateDir, skipped: list[Skipped]) -> Iterator[Folder]:
    """Yield each folder that has places of other locks, open. `locks` has the names of those locks,
    `parked` the private names that a removal left. The consumer closes the folder using `with`.

    Symlinks are followed as in `reading.folders`. What cannot be looked at goes into `skipped`,
    unless a pass over the session locks reports it too. Never raises OSError.
    """
    try:
        root = open_folder(state.path)
    except OSError:
        return  # a pass over the session locks reports it
    yield from _Walk(state, os.fstat(root).st_uid, skipped).open_all(root, _TABLE)


class _At(NamedTuple):
    """Where a folder is: the parts of the table that lead to it, and its path in the state dir."""

    parts: tuple[str, ...]
    path: str
    agent: str
    through_symlink: bool

    def below(self, part: str, name: str) -> "_At":
        agent = name if self.parts == ("agents",) else self.agent
        path = f"{self.path}/{name}".lstrip("/")
        return _At((*self.parts, part), path, agent, self.through_symlink)


_TOP: Final = _At((), "", "", through_symlink=False)


class _Walk(NamedTuple):
    """Opens the table's folders one by one, so that any number of agents needs few descriptors."""

    state: StateDir
    owner: int
    skipped: list[Skipped]

    def open_all(self, fd: int, node: _Node, at: _At = _TOP) -> Iterator[Folder]:
        """Yield this folder and those below it, and close it."""
        try:
            if node.places:
                yield from self._folder(fd, tuple(node.places), at)
            for part, child in node.below.items():
                for name in _names(fd, part):
                    found = self._open(fd, name, at.below(part, name))
                    if found is not None:
                        yield from self.open_all(found[0], child, found[1])
        except OSError as error:  # its names cannot be listed
            self._skip(error, at.parts, at.path)
        finally:
            os.close(fd)

    def _folder(self, fd: int, places: tuple[Place, ...], at: _At) -> Iterator[Folder]:
        own = os.dup(fd)
        linked = at.through_symlink
        folder = Folder(
            self.state, at.agent, own, through_symlink=linked, below=at.path, places=places
        )
        try:
            _read_names(folder, is_listed=at.parts != _SESSIONS)
        except OSError as error:
            os.close(own)
            self._skip(error, at.parts, at.path)
        else:
            yield folder

    def _open(self, fd: int, name: str, at: _At) -> tuple[int, _At] | None:
        try:
            opened, is_link = _open(fd, name, self.owner, is_listed="*" in at.parts[-1])
        except FileNotFoundError:
            return None
        except OSError as error:
            # If the name cannot even be looked at, the folder that contains it is to blame.
            blamed = at.parts if _is_there(name, fd) else at.parts[:-1]
            self._skip(error, blamed, at.path)
            return None
        return opened, at._replace(through_symlink=at.through_symlink or is_link)

    def _skip(self, error: OSError, parts: tuple[str, ...], path: str) -> None:
        if _should_report(error, parts):
            self.skipped.append(reading.skip(f"{self.state.path}/{path}", error))


def _names(fd: int, part: str) -> list[str]:
    return [name for name in sorted(os.listdir(fd)) if fits(part, name)] if "*" in part else [part]


def _open(fd: int, name: str, owner: int, *, is_listed: bool) -> tuple[int, bool]:
    """Open a folder, and return whether a symlink led to it. A folder that matches a pattern of the
    table must be the owner's and no symlink: OpenClaw ignores a symlink to an agent's folder, and
    another uid's temporary files belong to another gateway.
    """
    if not is_listed:
        return open_own_folder(name, dir_fd=fd, owner=owner)
    if os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid != owner:
        raise FileNotFoundError(errno.ENOENT, "another uid's", name)
    return open_folder(name, dir_fd=fd), False


def _is_there(name: str, fd: int) -> bool:
    with suppress(OSError):
        os.stat(name, dir_fd=fd, follow_symlinks=False)
        return True
    return False


_SESSIONS: Final = ("agents", "*", "sessions")
_SESSION_FOLDERS: Final = ((), _SESSIONS[:1], _SESSIONS[:2], _SESSIONS)


def _should_report(error: OSError, parts: tuple[str, ...]) -> bool:
    """Whether to report that a folder cannot be opened, because no session pass reports it."""
    if parts in _SESSION_FOLDERS:
        return False
    return not (parts and "*" in parts[-1] and error.errno in {errno.ENOTDIR, errno.ELOOP})


def _read_names(folder: Folder, *, is_listed: bool) -> None:
    """Find the locks of the folder's places, without `is_listed` only by exact names. Raises
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
            if name.startswith(PREFIX) and (parked := PRIVATE_NAME.fullmatch(name)):
                name, found = parked["name"] or "", folder.parked
            if place_of(name, folder.places) is None:
                continue
            if len(folder.locks) + len(folder.parked) < MOST_NAMES:
                found.append(entry.name)
            else:
                folder.locks_left_out += 1
    folder.locks.sort()
