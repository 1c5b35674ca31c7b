"""`make mutants` itself: it must not call a mutant noticed that no test noticed."""

from pathlib import Path

import pytest

from tests.mutants import Mutant, read, run

_TEST = """
from reaper.core.half import half

def test_half():
    assert half(4) == 2
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    (tmp_path / "reaper" / "core").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    for package in ("reaper", "reaper/core"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "reaper" / "core" / "half.py").write_text(
        "def half(number: int) -> int:\n    return number // 2 if number else 0\n"
    )
    (tmp_path / "tests" / "test_half.py").write_text(_TEST)
    return tmp_path


def mutant(old: str, new: str) -> Mutant:
    return Mutant("X", "it is wrong", "reaper/core/half.py", old, new, ("tests/test_half.py",))


@pytest.mark.parametrize(
    ("old", "new", "code", "line"),
    [
        ("// 2", "// 3", 0, "noticed   X: FAILED tests/test_half.py::test_half"),
        ("if number else 0", "", 1, "SURVIVES  X: it is wrong"),
        ("def half", "def (", 2, "BROKEN    X"),
    ],
)
def test_only_a_test_that_fails_has_noticed_a_mutant(
    repo: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, code: int, line: str
) -> None:
    assert run([mutant(old, new)], repo) == code
    assert capsys.readouterr().out.startswith(line)


def test_tests_that_fail_without_a_mutant_notice_none(
    repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repo / "tests" / "test_half.py").write_text("def test_half():\n    assert False\n")
    assert run([mutant("// 2", "// 3")], repo) == 2
    assert "do not pass without any mutant" in capsys.readouterr().out


@pytest.mark.parametrize("old", ["number", "nowhere"])
def test_a_text_that_does_not_occur_once_is_an_error(repo: Path, old: str) -> None:
    with pytest.raises(ValueError, match=r"occurs \d times"):
        run([mutant(old, "")], repo)


def test_each_text_of_the_list_occurs_once_in_the_program() -> None:
    repo = Path(__file__).parents[1]
    wrong = [
        mutant.name for mutant in read() if (repo / mutant.file).read_text().count(mutant.old) != 1
    ]
    assert wrong == []
