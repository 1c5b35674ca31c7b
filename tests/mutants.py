"""Break the program on purpose, one place at a time: a named test must notice each time.

    python -m tests.mutants            all of tests/mutants.toml
    python -m tests.mutants W01 L03    those whose name begins so

Each mutant is a piece of text that occurs once in a file, and what replaces it. It is applied to a
copy of the tree, and its tests run there. Exit code: 0 where a test fails for each mutant, 1 where
one survives, 2 where the list or the tests themselves are wrong.
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
"""Seconds for the tests of one mutant. One that makes them hang is noticed by that."""
_PASSED, _FAILED = 0, 1  # pytest's exit codes


class Mutant(NamedTuple):
    """`name` begins with a letter for the file; `means` is what the program would do wrongly."""

    name: str
    means: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, tree: Path) -> None:
        """Raises ValueError where the text does not occur, or occurs more than once."""
        path = tree / self.file
        text = path.read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its text occurs {count} times in {self.file}")
        path.write_text(text.replace(self.old, self.new))


def read(path: Path = _LIST) -> list[Mutant]:
    """Return the list. Raises TypeError, ValueError where it is not one."""
    listed = tomllib.loads(path.read_text())["mutant"]
    mutants = [Mutant(**{**fields, "tests": tuple(fields["tests"])}) for fields in listed]
    names = [mutant.name for mutant in mutants]
    if len(set(names)) != len(names):
        raise ValueError(f"a name is used twice in {path}")
    return mutants


@contextmanager
def _copy(repo: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="reaper-mutants-") as folder:
        tree = Path(folder)
        for name in _COPIED:
            if (repo / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(repo / name, tree / name, ignore=ignored)
            elif (repo / name).exists():
                shutil.copy(repo / name, tree / name)
        yield tree


def _exit_code(tree: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests in a copy; return pytest's exit code, and the last line that it writes."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        [*command, f"--basetemp={tree}/tmp", *tests],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return _FAILED, "the tests hang"
    failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return process.returncode, (failed or said.splitlines() or [""])[-1]


def _try(mutant: Mutant, repo: Path) -> tuple[int, str]:
    with _copy(repo) as tree:
        mutant.apply(tree)
        code, said = _exit_code(tree, mutant.tests)
    if code == _FAILED:
        return 0, f"noticed   {mutant.name}: {said}"
    if code == _PASSED:
        return 1, f"SURVIVES  {mutant.name}: {mutant.means}"
    return 2, f"BROKEN    {mutant.name}: pytest exits {code}: {said}"


def run(mutants: list[Mutant], repo: Path = _REPO, *, workers: int = 1) -> int:
    """Try all mutants, print a line for each, and return the exit code."""
    with ThreadPoolExecutor(workers) as pool:
        tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
        with _copy(repo) as tree:
            for mutant in mutants:
                mutant._replace(new=mutant.old).apply(tree)  # only to see that its text is there
            code, said = _exit_code(tree, tests)
        if code != _PASSED:
            print(f"the tests do not pass without any mutant: {said}")
            return 2
        worst = 0
        for code, line in pool.map(lambda mutant: _try(mutant, repo), mutants):
            print(line, flush=True)
            worst = max(worst, code)
    return worst


def main(names: list[str]) -> int:
    try:
        chosen = [it for it in read() if not names or it.name.startswith(tuple(names))]
        if not chosen:
            print(f"no mutant of {_LIST.name} has such a name")
            return 2
        return run(chosen, workers=min(4, os.cpu_count() or 1))
    except (TypeError, ValueError) as error:
        print(error)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
