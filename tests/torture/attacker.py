"""Replace the entries of a state directory as fast as possible, until killed.

    python -m tests.torture.attacker STATE_DIR OUTSIDE

Agent `evil` and its `sessions` alternate between a folder and a symlink to a folder OUTSIDE. Its
locks, private names, session store, trajectory and pointer alternate between a dead holder's lock,
a symlink or a hard link to a victim OUTSIDE, a FIFO, a folder, a socket, a device where permitted,
and nothing.
"""

import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

DEAD = b'{"pid": 1073741823, "createdAt": "2026-05-24T10:29:15.171Z", "maxHoldMs": 1000}'
NAMES = (
    "one.jsonl.lock",
    "two.jsonl.lock",
    "victim.jsonl.lock",
    "sessions.json",
    "one.jsonl",
    "one.trajectory.jsonl",
    "one.trajectory-path.json",
    ".rprabcde-two~",
    ".rprfghij-victim~",
)


def _file(path: Path, _outside: Path) -> None:
    path.write_bytes(DEAD)
    os.utime(path, (0, 0))


def _symlink(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "agents/evil/sessions/victim.jsonl.lock")


def _hard_link(path: Path, outside: Path) -> None:
    os.link(outside / "agents/evil/sessions/victim.jsonl.lock", path)


def _fifo(path: Path, _outside: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, _outside: Path) -> None:
    path.mkdir()


def _pointer(path: Path, outside: Path) -> None:
    path.write_text(f'{{"runtimeFile": "{outside}/agents/evil/sessions/victim.jsonl.lock"}}')


def _socket(path: Path, _outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def _device(path: Path, _outside: Path) -> None:
    os.mknod(path, 0o20644, os.makedev(1, 5))


def _nothing(_path: Path, _outside: Path) -> None:
    pass


SHAPES: tuple[Callable[[Path, Path], None], ...] = (
    _file, _file, _file, _symlink, _hard_link, _fifo, _folder, _pointer, _socket, _device, _nothing,
)  # fmt: skip


def _clear(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


def _swap_folder(folder: Path, target: Path) -> None:
    """Replace a folder by a symlink, or the symlink by the folder again."""
    parked = folder.with_name(f"{folder.name}-parked")
    if folder.is_symlink():
        folder.unlink()
        parked.rename(folder)
    else:
        folder.rename(parked)
        folder.symlink_to(target)


def main() -> None:
    state, outside = map(Path, sys.argv[1:])
    evil = state / "agents/evil"
    (evil / "sessions").mkdir(parents=True, exist_ok=True)
    while True:
        if random.randrange(40) == 0:
            time.sleep(0.4)  # the sidecar checks no younger lock
        with suppress(OSError):
            match random.randrange(12):
                case 0:
                    _swap_folder(evil, outside / "agents/evil")
                case 1 if not evil.is_symlink():
                    _swap_folder(evil / "sessions", outside / "agents/evil/sessions")
                case _:
                    sessions = evil / "sessions"
                    if evil.is_symlink() or sessions.is_symlink():
                        continue  # it would change the victim itself
                    path = sessions / random.choice(NAMES)
                    _clear(path)
                    random.choice(SHAPES)(path, outside)


if __name__ == "__main__":
    main()
