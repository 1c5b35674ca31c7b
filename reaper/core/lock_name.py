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

    is_guess: bool = False
    """The text may also be the exact name of another session."""

    def fits(self, agent: str, file: str) -> bool:
        """Return whether a lock has this name; `folder` is not compared."""
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
        is_guess = not is_file_name and not is_typed(literal, text)
        if "/" in literal or (is_file_name and in_sessions):
            path = posixpath.normpath(posixpath.join(working_directory, literal))
            names += _by_path(path, is_guess=is_guess)
            continue
        files = _lock_files(literal, is_guess=is_guess)
        if is_file_name:
            names.append(LockName(_lock_file(literal), folder=working_directory))
        names += files
        if not is_file_name:
            names.append(LockName(f"{literal}-topic-", is_topic_of=True, is_guess=True))
    return sorted(dict.fromkeys(names), key=lambda name: name.folder is None)


def session_keys(text: str) -> list[str]:
    """Return all ways to read `text` as a session key, the best first."""
    return list(dict.fromkeys((text, _cleaned(text))))


def is_typed(name: str, text: str) -> bool:
    """Whether a name is the whole text, or is in quotes there. Otherwise its end is a guess: ids
    and keys may end in punctuation too.
    """
    if name == text.strip():
        return True
    quoted = re.search(f"[{_QUOTES}]{re.escape(name)}[{_QUOTES}]", text)
    return quoted is not None


def _by_path(path: str, *, is_guess: bool) -> list[LockName]:
    folder, file = posixpath.split(path)
    if not file:
        return []
    found = _FOLDER.fullmatch(folder)
    files = _lock_files(file, is_guess=is_guess)
    names = [file._replace(folder=folder) for file in files]
    if found is not None:
        names += [file._replace(agent=found["agent"]) for file in files]
    return names


def _lock_files(text: str, *, is_guess: bool) -> list[LockName]:
    """Return the lock files that `text` may mean: as a file's name, then as a session's id."""
    file, by_id = _lock_file(text), text + LOCK_SUFFIX
    names = [LockName(file, is_guess=is_guess)]
    return names if by_id == file else [*names, LockName(by_id, is_guess=True)]


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
    literals += [re.sub(r"\\+", "/", literal) for literal in literals[1:]]
    return [literal for literal in dict.fromkeys(literals) if literal]


def _cleaned(text: str) -> str:
    return text.lstrip(_OPENING).rstrip(_CLOSING)
