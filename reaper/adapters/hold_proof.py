"""The lease probe: whether any process has this very file open for writing.

docs/facts.md, "The hold proof", says where the answer was shown to be right, and where not.
"""

import errno
import fcntl
import os
import re
import select
import signal
import weakref
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from reaper.adapters.kernel import file_system_type
from reaper.core.evidence import HoldProof
from reaper.core.file_systems import file_system_name

OVERLAYFS: Final = 0x794C7630

_TRUSTED_FILE_SYSTEMS: Final = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
        0x01021994,  # tmpfs
    }
)
"""File systems on which tests showed "not open" to be right. On some others (FUSE, NFS, 9p,
virtiofs) a holder beyond the mount is not visible. The rest was not tested."""

NO_RIGHTS: Final = "no-rights"
FILE_SYSTEM: Final = "file-system"
OTHER_LAYER: Final = "other-layer"
NO_LEASES: Final = "no-leases"

_LEASES_ENABLE: Final = "/proc/sys/fs/leases-enable"


def prepare() -> None:
    """Ignore SIGIO for the whole process. Call it once from its main thread, before `probe`.

    A process that opens a file while we have a lease on it makes the kernel send us SIGIO, which
    kills a process by default.
    """
    signal.signal(signal.SIGIO, signal.SIG_IGN)


class FolderMounts(NamedTuple):
    """What one pass knows about the file systems of a folder's files.

    `layered`: the folder is a layer of an overlay, or below one. `types`: file system types by
    device (`st_dev`), read when needed.
    """

    layered: bool
    types: dict[int, int]


def probe(  # noqa: PLR0911  # a table of answers
    fd: int, *, device: int, mounts: FolderMounts, same_mount: Callable[[], bool]
) -> tuple[HoldProof, str]:
    """Return the proof for a file and, if it is UNAVAILABLE, the reason. Never raises.

    `fd` is open for reading, `device` is the file's, `mounts` are those of its folder.

    Takes a read lease and gives it back at once; 6 µs. OPEN counts on any file system. NOT_OPEN
    counts only on a file system of the allow-list that is not a layer of an overlay. It also counts
    on an overlay that a gateway is known to use through this same mount (`same_mount`, called only
    there). Reasons: `no-rights`; `no-leases:` and what grants none (`sysctl`, `system`, or a file
    system's name); `file-system`, with `:` and its name if that is known; `other-layer`.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        match error.errno:
            case errno.EAGAIN:
                return HoldProof.OPEN, ""
            case errno.EACCES | errno.EPERM:
                return HoldProof.UNAVAILABLE, NO_RIGHTS
            case _:
                return HoldProof.UNAVAILABLE, f"{NO_LEASES}:{_why_no_leases(fd)}"
    except AttributeError:  # a system without leases: its fcntl module does not name them
        return HoldProof.UNAVAILABLE, f"{NO_LEASES}:system"
    kind = mounts.types.get(device)
    if kind is None:
        # Once for each device: a folder's files with the same device are on one file system, except
        # a file that is bind-mounted here, which cannot be removed anyway.
        try:
            kind = mounts.types[device] = file_system_type(fd)
        except OSError:
            return HoldProof.UNAVAILABLE, FILE_SYSTEM
    if kind == OVERLAYFS:
        return (HoldProof.NOT_OPEN, "") if same_mount() else (HoldProof.UNAVAILABLE, OTHER_LAYER)
    if kind not in _TRUSTED_FILE_SYSTEMS:
        return HoldProof.UNAVAILABLE, f"{FILE_SYSTEM}:{file_system_name(kind)}"
    return (HoldProof.UNAVAILABLE, OTHER_LAYER) if mounts.layered else (HoldProof.NOT_OPEN, "")


def may_be_shared(fd: int) -> bool:
    """Whether another kernel may use the file, by its file system. True if that is not known."""
    try:
        return file_system_type(fd) not in _TRUSTED_FILE_SYSTEMS | {OVERLAYFS}
    except OSError:
        return True


def _why_no_leases(fd: int) -> str:
    """Return `sysctl` if leases are switched off, `system` if this kernel or sandbox has none,
    else the name of the file system that refuses them.
    """
    try:
        with open(_LEASES_ENABLE, "rb") as setting:
            if setting.read(2).strip() == b"0":
                return "sysctl"
        return file_system_name(file_system_type(fd))
    except OSError:
        return "system"


_Layers = frozenset[tuple[int, int]]


class OverlayLayers:
    """The layer directories of the overlays that are mounted here.

    A process may hold a lock below one of these through the overlay. The lease does not see it.
    """

    def __init__(self) -> None:
        self._mounts: int | None = None
        self._changes = select.poll()
        self._known: _Layers | None = None

    def now(self, *, read: bool = True) -> _Layers | None:
        """Return (device, inode) of each; None if the mounts cannot be read.

        Without `read`, they are read only if the kernel says that they changed
        (proc_pid_mountinfo(5)). To ask takes 1 µs, to read 44 µs.
        """
        try:
            if self._mounts is None:
                self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
                weakref.finalize(self, os.close, self._mounts)
                self._changes.register(self._mounts, select.POLLPRI)
            elif not self._changes.poll(0) and not read and self._known is not None:
                return self._known
            # A change between `poll` and here is in the text, and `poll` reports it again.
            with open(self._mounts, "rb", closefd=False) as mounts:
                mounts.seek(0)
                self._known = _layers_in(mounts.read())
        except OSError:
            self._known = None
        return self._known


def _layers_in(text: bytes) -> _Layers:
    layers: set[tuple[int, int]] = set()
    if b" - overlay " not in text:
        return frozenset()
    for line in text.decode(errors="surrogateescape").split("\n"):
        _, _, described = line.partition(" - ")
        kind, *_, options = [*described.split(" "), ""][:3]
        if kind != "overlay":
            continue
        for option in options.split(","):
            key, _, value = option.partition("=")
            if key in {"upperdir", "lowerdir+", "datadir+"}:
                layers.update(_identities([value]))
            elif key == "lowerdir":
                layers.update(_identities(value.split(":")))
    return frozenset(layers)


def _identities(escaped_paths: list[str]) -> Iterator[tuple[int, int]]:
    for escaped in escaped_paths:
        path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), escaped)
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            continue
        yield found.st_dev, found.st_ino


def is_below(path: str, folders: _Layers | None) -> bool:
    """Whether `path` is, or may be, one of the folders or below one. None: they are unknown."""
    if folders is None:
        return True
    if not folders:
        return False
    path = os.path.realpath(path)
    while True:
        try:
            found = os.stat(path)
        except OSError:
            return True  # gone, or invisible: not known to be outside
        if (found.st_dev, found.st_ino) in folders:
            return True
        parent = os.path.dirname(path)
        if parent == path:
            return False
        path = parent
