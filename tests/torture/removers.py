"""Sweep a state directory again and again in one process, with one of these removers.

    python -m tests.torture.removers HOW STATE_DIR

HOW: `protocol` is the reaper's own. `plain` unlinks the name; `checked` first checks that it is
still the judged file. These two stand for simpler tools, and the harness must catch them.
"""

import os
import sys
from collections.abc import Callable
from typing import Final
from unittest.mock import patch

from reaper.adapters import hold_proof
from reaper.adapters.locks import removal
from reaper.adapters.locks.reading import OpenLock
from reaper.adapters.locks.removal import Removal
from reaper.core.lock import FileId, StateDir
from reaper.core.policy import Outcome, Policy
from reaper.core.verdict import Limits
from reaper.sweep import Reaper


def plain(opened: OpenLock, *, forced: bool = False) -> Removal:  # as `remove`
    try:
        os.unlink(opened.name, dir_fd=opened.folder.fd)
    except FileNotFoundError:
        return Removal(outcome=Outcome.VANISHED)
    return Removal(outcome=Outcome.REMOVED)


def checked(opened: OpenLock, *, forced: bool = False) -> Removal:  # as `remove`
    try:
        found = os.stat(opened.name, dir_fd=opened.folder.fd, follow_symlinks=False)
        if FileId(found.st_dev, found.st_ino) != opened.lock.file:
            return Removal(outcome=Outcome.CHANGED)
        os.unlink(opened.name, dir_fd=opened.folder.fd)
    except FileNotFoundError:
        return Removal(outcome=Outcome.VANISHED)
    return Removal(outcome=Outcome.REMOVED)


REMOVERS: Final[dict[str, Callable[..., Removal]]] = {
    "protocol": removal.remove,
    "plain": plain,
    "checked": checked,
}


def main() -> None:
    how, path = sys.argv[1:]
    hold_proof.prepare()
    reaper = Reaper([StateDir("torture", path)], limits=Limits(), policy=Policy())
    with patch.object(removal, "remove", REMOVERS[how]):
        while True:
            for _ in reaper.sweep(wait=0):
                pass


if __name__ == "__main__":
    main()
