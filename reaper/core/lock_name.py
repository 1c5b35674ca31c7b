"""What people call a lock: a session id, a file name, a path, or a session key."""

import posixpath
import re
from typing import Final, NamedTuple

from reaper.core.lock import LOCK_SUFFIX

_TRANSCRIPT_SUFFIX: Final = ".jsonl"
_FOLDER: Final = re.compile(r"(?:.*/)?agents/(?P<agent>[^/]+)/sessions", re.DOTALL)
_QUOTES: Final = "'\"`\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}" + "“”"
_OPENING: Final = f" \t\r\n{_QUOTES}([{{<"
_CLOSING: Final = f" \t\r\n{_QUOTES})]}}>.,;:"
_IN_A_MESSAGE: Final = re.compile(r".*?\.jsonl(?:\.lock)?(?=[\s:,;'\"`)\]}>])", re.DOTALL)
"""A file's name up to the text that follows in a message: `.../s.jsonl.lock: code=...`."""

_ABSOLUTE_PATH: Final = re.compile(r"(?<=[\s'\"`=(])/.*", re.DOTALL)
"""A path after the text that goes before it in a message: `pid=7 /root/.../s.jsonl.lock`."""


class LockName(NamedTuple):
    """One way to read what a person typed: as a lock file's name, and where that file is.

    With `folder`, an absolute path, the file is in that very folder. With `agent`, it is in the
    `sessions` folder of that agent, in whatever state directory. With neither, it is anywhere.
    """

    file: str
    agent: str | None = None
    folder: str | None = None
    is_topic_of: bool = False
    """`file` is then the beginning that the locks of a session's topics share."""

    def fits(self, agent: str, file: str) -> bool:
        """Tell whether a lock has this name. Whether it is in `folder` is not looked at."""
        if self.is_topic_of:
            return file.startswith(self.file) and file.endswith(LOCK_SUFFIX)
        return file == self.file and self.agent in {None, agent}


def lock_names(text: str, working_directory: str) -> list[LockName]:
    """Return all ways to read `text` as the name of a lock file, the best first.

    Names with a `folder` go first; then the text as typed goes before the text without what a
    message put around it. A file name without a folder is in `working_directory` if that is a
    `sessions` folder.
    """
    names: list[LockName] = []
    for literal in _literals(text):
        is_file_name = literal.endswith((_TRANSCRIPT_SUFFIX, LOCK_SUFFIX))
        in_sessions = _FOLDER.fullmatch(working_directory) is not None
        if "/" in literal or (is_file_name and in_sessions):
            names += _by_path(posixpath.normpath(posixpath.join(working_directory, literal)))
            continue
        if is_file_name:
            names.append(LockName(_lock_file(literal), folder=working_directory))
        names += [LockName(file) for file in _lock_files(literal)]
        if not is_file_name:
            names.append(LockName(f"{literal}-topic-", is_topic_of=True))
    return sorted(dict.fromkeys(names), key=lambda it: it.folder is None)


def session_keys(text: str) -> list[str]:
    """Return all ways to read `text` as a session key, the best first."""
    return list(dict.fromkeys((text, _cleaned(text))))


def _by_path(path: str) -> list[LockName]:
    folder, file = posixpath.split(path)
    if not file:
        return []
    found = _FOLDER.fullmatch(folder)
    names = [LockName(it, folder=folder) for it in _lock_files(file)]
    if found is not None:
        names += [LockName(it, agent=found["agent"]) for it in _lock_files(file)]
    return names


def _lock_files(text: str) -> list[str]:
    """Return the lock files that `text` may mean: as a file's name, then as a session's id."""
    return list(dict.fromkeys((_lock_file(text), text + LOCK_SUFFIX)))


def _lock_file(text: str) -> str:
    if text.endswith(LOCK_SUFFIX):
        return text
    return text.removesuffix(_TRANSCRIPT_SUFFIX) + LOCK_SUFFIX


def _literals(text: str) -> list[str]:
    cleaned = _cleaned(text)
    found = _IN_A_MESSAGE.match(cleaned)
    literals = [text, cleaned, found[0] if found else cleaned]
    absolute = _ABSOLUTE_PATH.search(literals[-1])
    literals.append(absolute[0] if absolute else cleaned)
    # Windows separates names by backslashes, which JSON and many logs double.
    literals += [re.sub(r"\\+", "/", it) for it in literals[1:]]
    return [it for it in dict.fromkeys(literals) if it]


def _cleaned(text: str) -> str:
    return text.lstrip(_OPENING).rstrip(_CLOSING)
