"""Only one file of the program removes and renames files."""

import ast
from pathlib import Path
from typing import Final

import reaper

PROGRAM: Final = Path(reaper.__file__).parent
REMOVAL: Final = "adapters/locks/removal.py"
OF_OS: Final = {"remove", "removedirs", "rename", "renames", "replace"}
"""Harmless methods have these names too, so they count only as attributes or imports of `os`."""
OF_ANYTHING: Final = {
    "exchange",
    "move",
    "rename_noreplace",
    "renameat2",
    "rmdir",
    "rmtree",
    "unlink",
}


def removing_names(source: str) -> set[str]:
    """Return the functions in a source that remove or rename a file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in OF_OS:
                found.add(name)
            case ast.Attribute(attr=name) | ast.Name(id=name) if name in OF_ANYTHING:
                found.add(name)
            case ast.ImportFrom(module=module, names=aliases):
                of_os = OF_OS if module == "os" else set()
                found |= {alias.name for alias in aliases} & (of_os | OF_ANYTHING)
    return found


def test_only_the_removal_removes_and_renames_files() -> None:
    found = {
        str(path.relative_to(PROGRAM)): names
        for path in PROGRAM.rglob("*.py")
        if (names := removing_names(path.read_text()))
    }
    assert found == {
        REMOVAL: {"exchange", "rename", "rename_noreplace", "rmdir", "unlink"},
        "adapters/kernel.py": {"renameat2"},  # the system call itself
    }


def test_no_way_to_remove_a_file_is_overlooked() -> None:
    for source in (
        "os.remove(name)",
        "from os import replace",
        "from os import unlink as gone",
        "path.unlink()",
        "shutil.rmtree(folder)",
        "kernel.exchange(one, other)",
        "how = os.rename",
    ):
        assert removing_names(source), source
    assert not removing_names("names.remove(name); text.replace('a', 'b'); rename = 'camel'")
