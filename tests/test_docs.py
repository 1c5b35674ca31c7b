"""The documents: the targets of links, and what the runbook must explain."""

import re
from pathlib import Path

import pytest

from reaper.adapters import hold_proof
from reaper.core import verdict
from reaper.core.lock import Shape
from reaper.reports import lock_gauges, metrics, table
from reaper.reports.advice import ANCHORS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path for folder in (".", "docs", "docs/decisions") for path in (ROOT / folder).glob("*.md")
)


def without_code(text: str) -> str:
    return re.sub(r"^( {4}|```).*$|`[^`\n]*`", "", text, flags=re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_link_leads_to_an_existing_file_and_heading(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    links += re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_names_each_document() -> None:
    named = set(re.findall(r"\]\(([^)]+\.md)\)", (ROOT / "docs" / "README.md").read_text()))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - named == {"README.md"}


def section(heading: str) -> str:
    """Return a section of the runbook."""
    text = (ROOT / "docs" / "runbook.md").read_text()
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def first_columns(heading: str) -> set[str]:
    """Return the codes in the first column of the table under a heading of the runbook."""
    rows = [line.split("|")[1] for line in section(heading).splitlines() if line.startswith("|")]
    return {code for row in rows[2:] for code in re.findall(r"`([^`]+)`", row)}


def test_the_runbook_explains_each_reason() -> None:
    reasons = {code for name, code in vars(verdict).items() if name.isupper() and _is_code(code)}
    notes = {code for name, code in vars(hold_proof).items() if name.isupper() and _is_code(code)}
    shapes = {shape.value for shape in Shape} - {"record", "unread", "guard"}
    unread = {"unreadable", "symlink", "not-regular", "error-…"}
    assert len(reasons) == 19
    assert len(notes) == 4
    assert first_columns("Reasons") == reasons | notes | shapes | unread
    rows = dict(re.findall(r"^\| `([^`]+)`[^|]*\| ([^|]*) \|", section("Reasons"), re.MULTILINE))
    words = table._WHY | table._WHY_NO_PROOF
    assert {code: word for code, word in rows.items() if word.strip()} == words
    assert first_columns("Cannot be judged") == notes | unread


def test_the_runbook_explains_each_reason_for_a_skipped_file_and_each_error() -> None:
    assert first_columns("ReaperCannotRead") == set(lock_gauges._SKIP_REASONS)
    assert first_columns("ReaperErrors") == set(metrics._ERROR_KINDS)


def test_the_runbook_has_each_section_that_the_program_links_to() -> None:
    assert ANCHORS - anchors(ROOT / "docs" / "runbook.md") == set()


def _is_code(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[a-z]+(-[a-zA-Z]+)+", text) is not None
