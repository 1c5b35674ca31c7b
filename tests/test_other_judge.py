"""The judge of the other locks: each condition, met and not met."""

from typing import Any

import pytest

from reaper.core.evidence import Evidence, Holder, HolderState, HoldProof
from reaper.core.lock import FileId, Lock, Record, Shape
from reaper.core.other_locks import (
    GUARD,
    KINDS,
    PLACES,
    START_MARGIN_MS,
    Place,
    Suspects,
    judge_other,
    place_of,
)
from reaper.core.policy import Action, Policy, decide
from reaper.core.verdict import Limits, Verdict

WRITTEN_MS = 1_000_000
KEPT_OPEN = Place("config", (), "openclaw.json.lock", "5.22", "ms", keeps_descriptor=True)
CLOSED = KEPT_OPEN._replace(kind="auth-profiles", keeps_descriptor=False)
NOBODY = Suspects(all_seen=True)
YOUNGER = Suspects(all_seen=True, oldest_began_ms=WRITTEN_MS + START_MARGIN_MS + 1)
OLDER = Suspects(all_seen=True, oldest_began_ms=WRITTEN_MS + START_MARGIN_MS)
NOT_ALL_SEEN = Suspects(all_seen=False)
BARE = Record(Shape.RECORD, pid=7, created_at_ms=WRITTEN_MS)
WITH_START = BARE._replace(starttime=99)
EMPTY = Record(Shape.EMPTY)
DIRECTORY = Record(Shape.GUARD)


def found(
    record: Record,
    *,
    proof: HoldProof = HoldProof.NOT_OPEN,
    holder: HolderState = HolderState.SAME,
    data: bytes = b"",
    age: float = 60.0,
    seen_for: float = 10.0,
) -> Evidence:
    lock = Lock("s", "", "", "/s/x.lock", FileId(1, 2), 0, 0, WRITTEN_MS * 10**6, data, record)
    return Evidence(lock, proof, Holder(holder), age, age, seen_for=seen_for)


def verdict(evidence: Evidence, place: Place, suspects: Suspects) -> tuple[str, str]:
    judgement = judge_other(evidence, place, suspects, Limits())
    assert judgement.confirmed
    assert (judgement.unmet is None) == (judgement.verdict in {Verdict.STALE, Verdict.ORPHANED})
    return judgement.verdict.value, judgement.reasons[0] if judgement.reasons else ""


NONE = HoldProof.UNAVAILABLE
OPEN = HoldProof.OPEN
GONE = HolderState.GONE
UNNAMED = HolderState.UNNAMED


@pytest.mark.parametrize(
    ("place", "fields", "suspects", "expected"),
    [
        # An open lock is held, no matter what else is known.
        (KEPT_OPEN, {"record": BARE, "proof": OPEN}, NOBODY, ("held", "")),
        (CLOSED, {"record": BARE, "proof": OPEN, "holder": GONE}, NOBODY, ("held", "")),
        # "Not open" counts only if holders keep the file open.
        (KEPT_OPEN, {"record": BARE}, OLDER, ("orphaned", "orphan-self-pid")),
        (CLOSED, {"record": BARE}, OLDER, ("uncertain", "no-descriptor")),
        (KEPT_OPEN, {"record": BARE, "proof": NONE}, OLDER, ("uncertain", "no-hold-proof")),
        (KEPT_OPEN, {"record": BARE, "seen_for": 9.9}, OLDER, ("uncertain", "too-early")),
        # A dead pid counts only if all processes that can have it are seen, in each PID namespace.
        (CLOSED, {"record": BARE, "holder": GONE}, NOBODY, ("stale", "dead-pid")),
        (CLOSED, {"record": BARE, "holder": GONE}, NOT_ALL_SEEN, ("uncertain", "no-descriptor")),
        (CLOSED, {"record": BARE, "holder": GONE}, OLDER, ("uncertain", "no-descriptor")),
        (CLOSED, {"record": BARE, "holder": GONE, "age": 59.9}, NOBODY, ("uncertain", "too-early")),
        (CLOSED, {"record": WITH_START, "holder": GONE}, NOBODY, ("stale", "dead-pid")),
        (
            CLOSED,
            {"record": WITH_START, "holder": GONE},
            NOT_ALL_SEEN,
            ("uncertain", "no-descriptor"),
        ),
        (KEPT_OPEN, {"record": BARE, "holder": GONE, "age": 0}, NOBODY, ("stale", "dead-pid")),
        # A recycled pid shows by the start time in the record, else by the kernel's times.
        (CLOSED, {"record": BARE}, YOUNGER, ("stale", "recycled-pid")),
        (CLOSED, {"record": BARE, "proof": NONE}, YOUNGER, ("stale", "recycled-pid")),
        (
            CLOSED,
            {"record": BARE},
            YOUNGER._replace(all_seen=False),
            ("uncertain", "no-descriptor"),
        ),
        (CLOSED, {"record": WITH_START}, YOUNGER, ("held", "")),
        (
            CLOSED,
            {"record": WITH_START, "holder": HolderState.REUSED},
            OLDER,
            ("stale", "recycled-pid"),
        ),
        (
            CLOSED,
            {"record": WITH_START, "holder": HolderState.UNKNOWN},
            YOUNGER,
            ("uncertain", "no-descriptor"),
        ),
        # An empty lock is stale if it is old, not open, and of a kind that holders keep open.
        (KEPT_OPEN, {"record": EMPTY, "holder": UNNAMED}, NOBODY, ("stale", "missing-pid")),
        (
            KEPT_OPEN,
            {"record": EMPTY, "holder": UNNAMED, "age": 59.9},
            NOBODY,
            ("uncertain", "too-early"),
        ),
        (
            KEPT_OPEN,
            {"record": EMPTY, "holder": UNNAMED, "proof": NONE},
            NOBODY,
            ("uncertain", "no-hold-proof"),
        ),
        (
            CLOSED,
            {"record": EMPTY, "holder": UNNAMED},
            NOBODY,
            ("uncertain", "no-descriptor"),
        ),
        # A guard is stale if it is empty, old, and older than all processes that can have made it.
        (KEPT_OPEN, {"record": DIRECTORY, "proof": NONE}, YOUNGER, ("stale", GUARD)),
        (KEPT_OPEN, {"record": DIRECTORY, "proof": NONE}, NOBODY, ("stale", GUARD)),
        (
            KEPT_OPEN,
            {"record": DIRECTORY, "proof": NONE, "data": b"x"},
            NOBODY,
            ("uncertain", "not-empty"),
        ),
        (
            KEPT_OPEN,
            {"record": DIRECTORY, "proof": NONE, "age": 59.9},
            NOBODY,
            ("uncertain", "too-early"),
        ),
        (
            KEPT_OPEN,
            {"record": DIRECTORY, "proof": NONE},
            OLDER,
            ("uncertain", "older-process"),
        ),
        (
            KEPT_OPEN,
            {"record": DIRECTORY, "proof": NONE},
            NOT_ALL_SEEN,
            ("uncertain", "pids-not-seen"),
        ),
    ],
)
def test_an_other_lock_is_stuck_only_with_proof(
    place: Place, fields: dict[str, Any], suspects: Suspects, expected: tuple[str, str]
) -> None:
    assert verdict(found(**fields), place, suspects) == expected


def test_a_look_reports_what_a_second_look_would_confirm() -> None:
    limits = Limits(seen_once_suffices=True)
    judgement = judge_other(found(BARE, seen_for=0), KEPT_OPEN, OLDER, limits)
    assert (judgement.verdict, judgement.confirmed) == (Verdict.ORPHANED, False)
    remove = Policy(on_other=Action.REMOVE)
    assert decide(judgement, remove, is_other=True) is Action.FLAG


@pytest.mark.parametrize("evidence", [found(BARE, holder=GONE), found(BARE, seen_for=60)])
def test_a_stuck_other_lock_is_removed_only_by_policy(evidence: Evidence) -> None:
    judgement = judge_other(evidence, KEPT_OPEN, NOBODY, Limits())
    assert decide(judgement, Policy(), is_other=True) is Action.FLAG
    assert decide(judgement, Policy(on_other=Action.REMOVE), is_other=True) is Action.REMOVE


def test_the_kind_of_a_lock_depends_on_the_table_of_names_alone() -> None:
    oauth = tuple(place for place in PLACES if place.kind == "oauth-refresh")
    places = {name: place_of(name, oauth) for name in _NAMES}
    assert {name: place and place[1] for name, place in places.items()} == _NAMES
    assert {place.kind for place in PLACES} | {GUARD} == set(KINDS)


_NAMES = {
    "sha256-1f.lock": "oauth-refresh",
    "sha256-1f.lock.reclaim": GUARD,
    "sha256-1f.lock.reclaim.reclaim": None,
    "sha256-1f": None,
    ".lock": "oauth-refresh",
    "sha256-1f.lock.1.tmp": None,
}
