"""How another uid runs the interpreter and the package under test.

Below a folder that is closed to others, such as a home of mode 0700, another uid cannot reach them,
or it finds another Python. It then runs in a new mount namespace, where an open folder with all
that Python needs covers the closed one.
"""

import functools
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import reaper
from tests.needs import not_tested

_ASK: Final = "import sys, psutil, reaper; print(sys.version, psutil.__file__, reaper.__file__)"
_REPO: Final = Path(reaper.__file__).parents[1]


def as_other_uid(*setpriv: str) -> tuple[str, ...]:
    """Return a wrapper that runs a command by setpriv with these options.

    Skips the test if another uid cannot reach this interpreter and package.
    """
    return (*way_of(*setpriv), "setpriv", *setpriv)


@functools.cache
def way_of(*setpriv: str) -> tuple[str, ...]:
    """Return what must precede setpriv with these options: nothing, or a mount namespace."""
    ways: tuple[tuple[str, ...], ...] = ((), _opened())
    for way in ways:
        if _said((*way, "setpriv", *setpriv)) == _said(()):
            return way
    return not_tested(
        f"as another uid, which cannot read {sys.executable} or {_REPO}",
        cure="a Python and a checkout that others may read",
    )


def _said(wrap: tuple[str, ...]) -> str:
    command = [*wrap, sys.executable, "-c", _ASK]
    return subprocess.run(command, capture_output=True, text=True).stdout


def _opened() -> tuple[str, ...]:
    """Return a wrapper that runs a command with no closed folder above what Python needs."""
    needed = _needed()
    closed = {
        parent for path in needed for parent in path.parents if not parent.stat().st_mode & 0o001
    }
    tops = [folder for folder in closed if not closed & set(folder.parents)]
    covered = [path for path in needed if set(tops) & set(path.parents)]
    above = {parent for path in needed for parent in path.parents}
    stash = next(top for top in ("/mnt", "/media", "/srv") if Path(top) not in above)
    lines = ["set -e", "mount --make-rprivate /", f"mount -t tmpfs reaper-test {stash}"]
    for number, path in enumerate(covered):
        lines += [f"mkdir {stash}/{number}", f"mount --bind {_quoted(path)} {stash}/{number}"]
    lines += [f"mount -t tmpfs -o mode=755 reaper-test {_quoted(top)}" for top in tops]
    for number, path in enumerate(covered):
        lines += [f"mkdir -p {_quoted(path)}", f"mount --bind {stash}/{number} {_quoted(path)}"]
    lines += [f"umount --lazy {stash}", f"cd {_quoted(_REPO)}", 'exec "$@"']
    return ("unshare", "--mount", "sh", "-c", "\n".join(lines), "opened")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _needed() -> list[Path]:
    """Return the folders that Python needs, without those inside another one."""
    found = {_REPO, *map(Path, (sys.base_prefix, sys.prefix, *sys.path))}
    folders = {folder for path in found for folder in (path, path.resolve()) if folder.is_dir()}
    return sorted(folder for folder in folders if not folders & set(folder.parents))
