"""Short names of locks: unambiguous when they are shown, and understood when they are typed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reaper.core.short_name import abbreviation, short_names, shortened

ONE = "d95bafc8-0001-4000-8000-000000000001"
OTHER = "d95bafc8-f001-4000-8000-000000000001"
NAMES = st.lists(
    st.text(alphabet="ab.- \N{HORIZONTAL ELLIPSIS}", min_size=1, max_size=40), max_size=8
)


def fits(text: str, name: str) -> bool:
    short = abbreviation(text)
    return short is not None and short.fits(name)


def test_a_uuid_is_shown_by_its_first_group() -> None:
    assert short_names([ONE, "0" + ONE[1:]]) == {ONE: "d95bafc8", "0" + ONE[1:]: "095bafc8"}


def test_enough_is_shown_to_distinguish_two_names() -> None:
    assert short_names([ONE, OTHER]) == {ONE: "d95bafc8-0", OTHER: "d95bafc8-f"}


def test_a_topic_is_shown_by_both_ends() -> None:
    topic = f"{ONE}-topic-5"
    assert short_names([ONE, topic]) == {
        ONE: "d95bafc8...00000001",
        topic: "d95bafc8...-topic-5",
    }


def test_a_short_name_is_shown_whole() -> None:
    assert short_names(["main", "main-2", "a-long-name-of-a-person"]) == {
        "main": "main",
        "main-2": "main-2",
        "a-long-name-of-a-person": "a-long-n",
    }


@given(NAMES)
def test_a_short_name_that_is_shown_means_one_lock(names: list[str]) -> None:
    """An exact name has priority over a short one."""
    for name, short in short_names(names).items():
        fitting = {name for name in names if fits(short, name)}
        assert short == name or fitting == {name}


@given(st.text(min_size=1, max_size=60), st.integers(min_value=3, max_value=40))
def test_a_name_that_is_cut_to_a_width_is_understood(name: str, width: int) -> None:
    shown = shortened(name, width)
    assert len(shown) <= width
    if width > 3 and name.strip() == name and "..." not in name.replace("…", "..."):
        assert fits(shown, name)


def test_a_key_is_cut_where_it_is_least_specific() -> None:
    key = "agent:main:telegram:group:-1001234567890"
    assert shortened(key, 24) == "...:group:-1001234567890"
    assert shortened(key, 36) == "agent:main:teleg...up:-1001234567890"


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("...1", ONE, True),
        ("d95b", ONE, True),
        (" d95bafc8\n", ONE, True),
        ("d95bafc8...0001", ONE, True),
        ("d95bafc8\N{HORIZONTAL ELLIPSIS}0001", ONE, True),
        ("95b", ONE, False),
        (f"{ONE}0", ONE, False),
        ("aa...a", "aa", False),
        ("a\\nb", "a\nbc", True),
    ],
)
def test_a_typed_abbreviation_fits_a_name(text: str, name: str, expected: bool) -> None:
    assert fits(text, name) is expected


@pytest.mark.parametrize("text", ["", " ", "...", "\N{HORIZONTAL ELLIPSIS}"])
def test_an_empty_abbreviation_fits_no_name(text: str) -> None:
    assert abbreviation(text) is None


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("d95bafc8", ONE, False),
        ("d95b", ONE, True),
        ("main", "main-of-somebody-else", True),
        ("main...else", "main-of-somebody-else", True),
        ("...:nightly", "agent:main:nightly", True),
        ("x95bafc8", "x" + ONE[1:], True),
        ("d95bafc8", f"{ONE}-topic-5", True),
        ("d95bafc8...-topic-5", f"{ONE}-topic-5", False),
        ("d95bafc8...", f"{ONE}-topic-5", True),
        ("d95bafc8...5", f"{ONE}-topic-5", True),
        ("0198c0de", "0198c0de-5e55-7000-8000-000000000001", True),
    ],
)
def test_a_prefix_that_may_be_a_whole_name_is_a_guess(text: str, name: str, expected: bool) -> None:
    short = abbreviation(text)
    assert short is not None
    assert short.is_guess(name) is expected
