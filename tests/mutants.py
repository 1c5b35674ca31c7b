"""Break the program on purpose, in one place at a time; a test must notice each change.

    python -m tests.mutants            all of tests/mutants.toml
    python -m tests.mutants W01 L03    those with names that begin so

Each mutant is a text that occurs once in a file, and its replacement. It is applied to a copy of
the tree, and its tests run there: its own, or else those that the list names for the file. Exit
code: 0 if a test fails for each mutant, 1 if one survives, 2 if the list or the tests are wrong.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

_REPO: Final = Path(__file__).resolve().parents[1]
_LIST: Final = Path(__file__).with_suffix(".toml")
_COPIED: Final = ("reaper", "tests", "docs", "deploy/terminal", "pyproject.toml")
_PATIENCE: Final = 600.0
"""Seconds for the tests of a mutant. A mutant that makes them hang counts as noticed."""
_PASSED, _FAILED = 0, 1  # pytest's exit codes


class Mutant(NamedTuple):
    """`name` begins with a letter for the file; `means` says what the program does wrongly."""

    name: str
    means: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def mutated(self, tree: Path) -> str:
        """Return the changed text. Raises ValueError unless the old text occurs exactly once."""
        text = (tree / self.file).read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its text occurs {count} times in {self.file}")
        return text.replace(self.old, self.new)

    def apply(self, tree: Path) -> None:
        path = tree / self.file
        path.write_text(self.mutated(tree))
        os.utime(path, (0, 0))  # else old bytecode is used for a source of the same size and second


def read(path: Path = _LIST) -> list[Mutant]:
    """Return the list. Raises KeyError, TypeError, ValueError if it is not valid."""
    listed = tomllib.loads(path.read_text())
    tests = listed["tests"]
    mutants = [
        Mutant(**{**fields, "tests": tuple(fields.get("tests") or tests[fields["file"]])})
        for fields in listed["mutant"]
    ]
    names = [mutant.name for mutant in mutants]
    if len(set(names)) != len(names):
        raise ValueError(f"a name is used twice in {path}")
    return mutants


@contextmanager
def _copy(source: Path, *ignored: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="reaper-mutants-") as folder:
        tree = Path(folder)
        for name in _COPIED:
            if (source / name).is_dir():
                ignore = shutil.ignore_patterns(*ignored)
                shutil.copytree(source / name, tree / name, ignore=ignore)
            elif (source / name).exists():
                shutil.copy2(source / name, tree / name)
        yield tree


def _exit_code(tree: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests in a copy; return pytest's exit code and its last line."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen(
        [*command, f"--basetemp={tree}/tmp", *tests],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return _FAILED, "the tests hang"
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return process.returncode, (failed or output.splitlines() or [""])[-1]


def _try(mutant: Mutant, source: Path) -> tuple[int, str]:
    with _copy(source) as tree:
        mutant.apply(tree)
        code, line = _exit_code(tree, mutant.tests)
    if code == _FAILED:
        return 0, f"noticed   {mutant.name}: {line}"
    if code == _PASSED:
        return 1, f"SURVIVES  {mutant.name}: {mutant.means}"
    return 2, f"BROKEN    {mutant.name}: pytest exits {code}: {line}"


def run(mutants: list[Mutant], repo: Path = _REPO, *, workers: int = 1) -> int:
    """Try all mutants, print a line for each, and return the exit code."""
    tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
    worst = 0
    with ThreadPoolExecutor(workers) as pool, _copy(repo, "__pycache__") as checked_copy:
        for mutant in mutants:
            mutant.mutated(checked_copy)  # checks that its text occurs
        code, line = _exit_code(checked_copy, tests)
        if code != _PASSED:
            print(f"the tests do not pass without any mutant: {line}")
            return 2
        # The copies of this copy include the bytecode that the tests left.
        for code, line in pool.map(lambda mutant: _try(mutant, checked_copy), mutants):
            print(line, flush=True)
            worst = max(worst, code)
    return worst


def main(names: list[str]) -> int:
    try:
        chosen = [each for each in read() if not names or each.name.startswith(tuple(names))]
        if not chosen:
            print(f"no mutant of {_LIST.name} has such a name")
            return 2
        return run(chosen, workers=min(4, os.cpu_count() or 1))
    except (KeyError, TypeError, ValueError) as error:
        print(error)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
