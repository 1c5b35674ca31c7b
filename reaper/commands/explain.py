"""`reaper explain`, which `unlock` shows first."""

import os
import re
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from reaper.commands.console import terminal_width
from reaper.commands.options import POLICY, Judging, with_judging
from reaper.commands.reporting import NoOutput, Report, written_to_standard_output
from reaper.core.evidence import StoreStatus
from reaper.core.lock import LOCK_SUFFIX
from reaper.core.lock_name import is_typed, lock_names, session_keys
from reaper.core.other_locks import GUARD_SUFFIX
from reaper.core.short_name import abbreviation
from reaper.core.text import printable
from reaper.reports.advice import advice
from reaper.reports.explain import evidence_lines, line
from reaper.reports.links import runbook
from reaper.reports.unmet import why_not_removed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reaper.core.finding import Finding, Skipped
    from reaper.core.lock import LockKey
    from reaper.sweep import Reaper

_OTHER_SUFFIXES: Final = (".lock", GUARD_SUFFIX)
_MOST_SHOWN: Final = 20
"""Locks that are listed if a short name fits more than one."""
_HEXADECIMAL: Final = re.compile("[0-9a-fA-F-]{4,}")


def _complete(ctx: Any, incomplete: str) -> list[tuple[str, str]]:  # noqa: ANN401  # click's Context
    from reaper.commands.completion import complete_sessions  # noqa: PLC0415  # shells only

    return complete_sessions(ctx, incomplete)


LockArgument = Annotated[
    str,
    typer.Argument(
        metavar="LOCK|SESSION",
        autocompletion=_complete,
        help="The session: its id or key as `reaper list` shows it (also shortened), or the name "
        "or path of its lock or transcript file, also from another machine.",
    ),
]


class Match(NamedTuple):
    """A lock with the name that a person typed. `other_folder`, if any, is the folder that was
    typed: it exists here and is not the lock's. `is_guess`: the name may be another session's.
    """

    found: "Finding"
    other_folder: str | None = None
    is_guess: bool = False


class _Search:
    """Looks for the locks that a person means by a text."""

    def __init__(self, text: str, reaper: "Reaper", report: Report, *, others: bool) -> None:
        self._text = text
        self.finds_others = others
        self._reaper = reaper
        self._report = report
        self._reported: set[Skipped] = set()
        self._names = lock_names(text, _working_directory())
        self._short = abbreviation(text)
        self._shortened: list[Match] = []
        self.stores_not_understood: set[str] = set()
        self.ambiguous: list[Match] = []
        self.fitting = 0

    def matches(self) -> list[Match]:
        """Return the locks that fit best: by name, else by session key, else by a short name. If a
        short name fits several, return none, and put them into `ambiguous`.
        """
        if self.finds_others and self._text.endswith(_OTHER_SUFFIXES):
            others = [Match(found) for found in self._looked_at(self._is_named)]
            if others:
                return others
        by_rank: dict[int, list[Match]] = defaultdict(list)
        for found in self._looked_at(lambda key: self._rank(key) is not None):
            rank = self._rank(found.key)
            if rank is not None:
                is_guess = self._names[rank].is_guess
                by_rank[rank].append(Match(found, self._other_folder(rank), is_guess))
        if not by_rank and not self.is_lock_path:
            if self._short is not None and _HEXADECIMAL.fullmatch(self._short.start):
                # No session key looks like this, so the names of the files are enough.
                short = self._short
                for found in self._looked_at(
                    lambda key: short.fits(key.name.removesuffix(LOCK_SUFFIX))
                ):
                    self._add_shortened(found)
            if not self._shortened:
                self._match_keys(by_rank)
        if by_rank:
            return by_rank[min(by_rank)]
        self.ambiguous = self._shortened if len(self._shortened) > 1 else []
        return [] if self.ambiguous else self._shortened

    def _match_keys(self, by_rank: dict[int, list[Match]]) -> None:
        keys = session_keys(self._text)
        for found in self._looked_at(None):
            run = found.evidence.run
            rank = next((i for i, key in enumerate(keys) if key in run.session_keys), None)
            if rank is not None:
                is_guess = not is_typed(keys[rank], self._text)
                by_rank[rank].append(Match(found, is_guess=is_guess))
                continue
            self._add_shortened(found)
            if run.store is StoreStatus.UNKNOWN and not run.session_keys:
                self.stores_not_understood.add(_sessions_folder(found.key) + "/sessions.json")

    def _add_shortened(self, found: "Finding") -> None:
        """Keep a lock that has the text as a short name; of many, some and their number."""
        names = (found.lock.session, *found.evidence.run.session_keys)
        fitting = [name for name in names if self._short and self._short.fits(name)]
        if self._short is None or not fitting:
            return
        self.fitting += 1
        if len(self._shortened) < _MOST_SHOWN:
            is_guess = all(map(self._short.is_guess, fitting))
            self._shortened.append(Match(found, is_guess=is_guess))

    @property
    def is_lock_path(self) -> bool:
        """Whether the text is a path that ends as the paths of locks do."""
        return any(name.agent for name in self._names)

    def _looked_at(self, wanted: "Callable[[LockKey], bool] | None") -> "Iterator[Finding]":
        """Look at the locks that the person may mean, None for all. Report what could not be
        checked.
        """
        from reaper.core.finding import Finding  # noqa: PLC0415

        for found in self._reaper.explain(wanted or (lambda key: bool(key.agent))):
            if isinstance(found, Finding):
                yield found
            elif found not in self._reported and (found.failed or (found.key and wanted)):
                self._reported.add(found)
                self._report.add(found)

    def _is_named(self, key: "LockKey") -> bool:
        """Whether the text is the name or the path of this other lock."""
        path = os.path.abspath(os.path.join(_working_directory(), self._text))
        names = {self._text, path}
        return not key.agent and not names.isdisjoint(
            {key.name, os.path.basename(key.name), f"{key.state.path}/{key.name}"}
        )

    def _rank(self, place: "LockKey") -> int | None:
        """Return how well a lock fits the text, 0 is best; None if it does not."""
        for rank, name in enumerate(self._names):
            agent = place.agent if name.agent is None else name.agent
            if not name.fits(agent, place.name):
                continue
            folder = name.folder or _sessions_folder(place._replace(agent=agent))
            if (name.folder is None and agent == place.agent) or _is_same_folder(
                folder, _sessions_folder(place)
            ):
                return rank
        return None

    def _other_folder(self, rank: int) -> str | None:
        """Return the folder of the typed path, if it exists here. For a lock that was found only
        by the end of that path.
        """
        name = self._names[rank]
        if name.agent is None:
            return None
        ending = f"/agents/{name.agent}/sessions"
        folders = (
            typed.folder for typed in self._names if typed.folder and typed.file == name.file
        )
        return next(
            (folder for folder in folders if folder.endswith(ending) and os.path.isdir(folder)),
            None,
        )


def _working_directory() -> str:
    with suppress(FileNotFoundError):
        return os.getcwd()
    return "/"


def _sessions_folder(place: "LockKey") -> str:
    return f"{place.state.path}/agents/{place.agent}/sessions"


def _is_same_folder(one: str, other: str) -> bool:
    with suppress(OSError):
        return os.path.samefile(one, other)
    return False


def explain_matches(
    judging: Judging, reaper: "Reaper", text: str, report: Report, *, others: bool = False
) -> list[Match]:
    """Write the whole evidence for each lock that a person may mean by `text`. Return the locks.

    With `others`, look for other locks too.
    """
    search = _Search(text, reaper, report, others=others)
    matches = search.matches()
    for match in matches:
        found = match.found
        if not judging.as_json:
            typer.echo("\n".join(_in_words(judging, found)))
        if match.other_folder is not None:
            judging.console.info(
                f"{printable(match.other_folder)} exists here and is not the folder of this lock, "
                f"which has the same name: {printable(found.lock.path)}"
            )
    if not matches:
        which = _which(search, text) if search.ambiguous else _not_found(judging, search, text)
        judging.console.error(which)
        report.summary.failed += 1
    return matches


def _in_words(judging: Judging, found: "Finding") -> list[str]:
    """Return the evidence for one lock, why it is not removed, and what to do next."""
    state_dir = found.key.state.path if judging.by_option else None
    step = advice(found, state_dir=state_dir, explained=True)
    not_removed = why_not_removed(found)
    lines = evidence_lines(found, judging.limits)
    if not_removed is not None:
        lines.append(line("not removed", f"because {not_removed.text}"))
    lines.append(line("next step", step.text))
    if step.command is not None:
        lines.append(line("command", step.command))
    lines.append(line("runbook", runbook(step.runbook)))
    width = terminal_width()
    return lines if width is None else [part for text in lines for part in _wrapped(text, width)]


def _wrapped(text: str, width: int) -> list[str]:
    """Break a line between words, but not in a path or a command, which people copy."""
    from textwrap import wrap  # noqa: PLC0415  # on a terminal only

    if not text.startswith(" ") or text.startswith(line("command", "")):
        return [text]
    indent = " " * len(line("", ""))
    return wrap(
        text,
        max(width, 2 * len(indent)),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _which(search: _Search, text: str) -> str:
    """Return the locks that a short name fits, one on each line."""
    lines = [f"{printable(text)} fits {search.fitting} locks. Type more of the one that you mean:"]
    for match in search.ambiguous:
        key = match.found.evidence.run.session_key
        agent = f"agent {match.found.lock.agent}"
        lines.append(printable(f"  {match.found.lock.session}  {agent if key is None else key}"))
    if search.fitting > len(search.ambiguous):
        lines.append("  ...")
    return "\n".join(lines)


def _not_found(judging: Judging, search: _Search, text: str) -> str:
    places = ", ".join(state.path for state in judging.states)
    message = f"no lock for {printable(text)} in {printable(places)}"
    if not search.is_lock_path:
        if not search.finds_others and text.endswith(_OTHER_SUFFIXES):
            message += "; this command is for session locks: ask `reaper explain` about other locks"
        elif "/" in text:
            message += "; the path of a lock ends in agents/AGENT/sessions/FILE"
    if search.stores_not_understood:
        stores = ", ".join(printable(store) for store in sorted(search.stores_not_understood))
        message += (
            f"; as a session key it cannot be looked up: {stores} cannot be read or understood"
        )
    return message


@with_judging("as_json", *POLICY)
def command(judging: Judging, *, lock: LockArgument) -> None:
    """Explain one lock: why it is kept or removed, and what to do next.

    Changes nothing.
    """
    with written_to_standard_output(judging.console):
        report = Report(judging, judging.output() if judging.as_json else NoOutput())
        for match in explain_matches(judging, judging.reaper(), lock, report, others=True):
            report.add(match.found)
        report.end()
    raise typer.Exit(report.exit_code())
