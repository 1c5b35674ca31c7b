"""The paths that a command opened for writing, renamed, unlinked or changed, from strace."""

import re
from pathlib import Path
from typing import Final

_CHANGING: Final = (
    "chmod chown copy_file_range creat fallocate fchmod fchmodat fchmodat2 fchown fchownat "
    "fremovexattr fsetxattr ftruncate futimesat io_uring_setup ioctl lchown link linkat "
    "lremovexattr lsetxattr mkdir mkdirat mknod mknodat mount open openat openat2 pwrite64 pwritev "
    "pwritev2 removexattr rename renameat renameat2 rmdir sendfile setxattr symlink symlinkat "
    "truncate umount2 unlink unlinkat utime utimensat utimes write writev"
)
TRACE: Final = ",".join(f"?{name}" for name in _CHANGING.split(" "))
"""For strace's `-e trace=`: each system call that can change a file."""

_LINE: Final = re.compile(r"^(?:\d+ +)?(?P<call>\w+)\((?P<arguments>.*)", re.MULTILINE)
_STRING: Final = re.compile(
    r'(?:(?:\d+|AT_FDCWD)<(?P<folder>[^>]*)>, )?"(?P<name>(?:[^"\\]|\\.)*)"'
)
_DESCRIPTOR: Final = re.compile(r"(?P<fd>\d+)<(?P<path>[^>]*)>")
_FOR_WRITING: Final = re.compile(r"O_(?:WRONLY|RDWR|CREAT|TRUNC|APPEND|TMPFILE)")
_BY_DESCRIPTOR: Final = re.compile(r"write|ftruncate|fch(?:mod|own)\b|fset|fremove|ioctl|fallocate")
_NO_CHANGE: Final = re.compile(r"TCGETS|FIONREAD|FIOCLEX|TIOCGWINSZ|FIONBIO")


def touched(log: str) -> set[str]:
    """Return the paths in a log of `strace -y` with a change or an attempt to change them. Pipes,
    sockets and eventfds have no path and are left out.
    """
    paths: set[str] = set()
    for line in _LINE.finditer(log):
        call, arguments = line["call"], line["arguments"]
        if call in {"open", "openat", "openat2"} and not _FOR_WRITING.search(arguments):
            continue
        if _BY_DESCRIPTOR.search(call):
            at = _DESCRIPTOR.match(arguments)
            if at and at["path"].startswith("/") and not _NO_CHANGE.search(arguments):
                paths.add(at["path"])
            continue
        for text in _STRING.finditer(arguments):
            folder, name = text["folder"], text["name"]
            paths.add(f"{folder}/{name}" if folder and not name.startswith("/") else name)
    return paths


def outside(paths: set[str], state: Path) -> set[str]:
    """Return the paths that are neither a lock file of the state directory nor a removal's private
    name. A folder that was moved while it was open counts as the same folder.
    """
    own = re.compile(
        re.escape(str(state))
        + r"/agents/[^/]+/sessions(?:-parked)?/(?:[^/]*\.jsonl\.lock|\.rpr[0-9a-z]{5}-[^/]*~)"
    )
    return {path for path in paths if not own.fullmatch(path)} - {"/dev/null"}
