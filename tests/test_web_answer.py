"""The first line of the page: it says that all is well only if that is known."""

import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from reaper.core.evidence import Evidence, Holder, HolderState, HoldProof
from reaper.core.finding import NO_SESSIONS, SESSIONS_ELSEWHERE, Skipped
from reaper.core.lock import StateDir
from reaper.core.policy import Outcome
from reaper.core.verdict import Verdict
from reaper.core.wedged import Load
from reaper.gateway_health import HolderHealth, HolderName
from reaper.reports.records import lock_record
from reaper.web.answer import Facts, Level, Stuck, answer, holding
from tests.serving import (
    HOST,
    Serving,
    first_line,
    level,
    put,
    stale,
    unprobed,
)
from tests.sidecar import Sidecar, until
from tests.test_metrics import a_lock

# The first line


@pytest.mark.parametrize("alive_once", [False, True], ids=["", "seen alive"])
@pytest.mark.parametrize("named", [None, 7], ids=["unnamed", "named"])
@pytest.mark.parametrize(("proof", "state"), [*itertools.product(HoldProof, HolderState)])
def test_the_first_line_says_only_what_was_seen_of_the_holder(
    proof: HoldProof, state: HolderState, named: int | None, alive_once: bool
) -> None:
    lock = a_lock().lock
    lock = lock._replace(record=lock.record._replace(pid=named))
    evidence = Evidence(
        lock=lock,
        proof=proof,
        holder=Holder(state=state, pid=named if state is HolderState.SAME else None),
        age=10.0,
        file_age=10.0,
        holder_seen_alive=alive_once,
    )
    who = holding(evidence).who
    line = answer(Facts(stuck=1, first=Stuck(9000, evidence))).line
    assert line.endswith(f"UTC</time>, {who}.")
    dead = state in {HolderState.GONE, HolderState.ZOMBIE, HolderState.REUSED}
    match proof:
        case HoldProof.OPEN:
            assert who.startswith("held by ")
            assert "exited" not in who
            assert ("cannot be identified" in who) is (state is not HolderState.SAME)
        case HoldProof.NOT_OPEN:
            assert who.startswith("left by " if dead and named else "held by nobody")
        case HoldProof.UNAVAILABLE:
            assert "held by" not in who
            assert ("exited" in who) is (dead and alive_once)
            assert ("still runs" in who) is (state is HolderState.SAME)
    assert ("nobody" in who) <= (proof is HoldProof.NOT_OPEN)
    assert ("pid 7" in who) <= (named == 7)
    if named == 7:
        assert "pid 7" in who


FINE = Facts()
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"stopped": True}, "bad", "The reaper has stopped responding. This page is out of date."),
    ({"stuck": 2, "first": None}, "bad", "2 sessions are stuck."),
    ({"wedged": [7]}, "bad", "No session is stuck, but pid 7 is wedged."),
    ({"wedged": [7, 8]}, "bad", "No session is stuck, but 2 processes are wedged."),
    ({"others_stuck": 1}, "bad", "No session is stuck, but 1 other lock of OpenClaw is stuck."),
    ({"others_stuck": 2}, "bad", "No session is stuck, but 2 other locks of OpenClaw are stuck."),
    ({"not_ready": "a folder is missing"}, "doubt", "Unknown: a folder is missing."),
    ({"void": 1}, "doubt", "Unknown: 1 state directory has no sessions folder. Is the path right?"),
    ({"void": 2}, "doubt", "Unknown: 2 state directories have no sessions folder. "),
    ({"unjudged": 1}, "doubt", "Unknown: 1 lock cannot be judged."),
    ({"unread": 2}, "doubt", "Unknown: 2 files could not be read."),
    ({"elsewhere": 1}, "doubt", "Unknown: the gateway keeps sessions in a folder that"),
    ({"others_unjudged": 1}, "doubt", "Unknown: 1 other lock cannot be judged."),
]


UNKNOWN = {"not_ready", "void", "unjudged", "unread", "elsewhere", "others_unjudged"}


@pytest.mark.parametrize(("wrong", "worst", "line"), WRONG)
def test_the_first_line_is_green_only_if_everything_is_known_and_fine(
    wrong: dict[str, Any], worst: str, line: str
) -> None:
    assert answer(FINE).level is Level.GOOD
    assert answer(FINE).line == "No session is stuck."
    found = answer(FINE._replace(**wrong))
    assert found.level.value == worst
    assert found.line.startswith(line)


def test_of_two_problems_the_first_line_reports_the_worse() -> None:
    order = [wrong for wrong, _, _ in WRONG]
    for (index, worse), (later_index, less) in itertools.combinations(enumerate(order), 2):
        if worse.keys() == less.keys():
            continue
        found, alone = answer(FINE._replace(**{**less, **worse})), answer(FINE._replace(**worse))
        assert found.level is alone.level, (index, later_index)
        if alone.line.startswith("No session is stuck, but") and less.keys() <= UNKNOWN:
            # It is not known that no session is stuck.
            assert "No session" not in found.line
            assert found.line.endswith(f". {answer(FINE._replace(**less)).line}")
        else:
            assert found == alone, (index, later_index)


def test_the_first_line_counts_other_locks_too(serving: Serving) -> None:
    served = serving()
    other = a_lock()
    other = other._replace(lock=other.lock._replace(kind="config"))
    unjudged = other.judgement._replace(verdict=Verdict.UNCERTAIN, reasons=("no-descriptor",))
    stuck = other.judgement._replace(verdict=Verdict.STALE, reasons=("dead-pid",), row=13)
    served.inventory.set_others([other])
    assert first_line(served) == "No session is stuck."
    served.inventory.set_others([other, other._replace(judgement=unjudged)])
    assert first_line(served) == "Unknown: 1 other lock cannot be judged."
    served.inventory.set_others(
        [other._replace(judgement=stuck), other._replace(judgement=unjudged)]
    )
    assert first_line(served) == (
        "1 other lock of OpenClaw is stuck. Unknown: 1 other lock cannot be judged."
    )


def test_the_first_line_says_what_is_stuck_since_when_and_who_holds_it(serving: Serving) -> None:
    served = serving()
    assert first_line(served) == "No session is stuck."
    put(served.inventory, session="healthy")
    assert first_line(served) == "No session is stuck."
    stale(served.inventory, session="dead", age=500.0)
    assert first_line(served) == (
        "1 session is stuck: locked since 1970-01-01 00:00:09 UTC, left by pid 7, which has exited."
    )
    put(served.inventory, session="older", age=1900.0, proof=HoldProof.OPEN)
    assert "1 session" in first_line(served)  # it is held for less than 30 minutes and the grace
    stale(served.inventory, session="eldest", age=99_999.0, holder=Holder(state=HolderState.SAME))
    assert first_line(served).startswith("1 session")  # not seen for its grace yet
    put(
        served.inventory,
        session="forgotten",
        age=99_999.0,
        proof=HoldProof.NOT_OPEN,
        holder=Holder(state=HolderState.SAME, pid=7),
        seen_for=11.0,
    )
    line = first_line(served)
    assert line.startswith("2 sessions are stuck: the first locked since ")
    assert line.endswith(", held by nobody, although it names pid 7, which is alive.")
    assert f"<title>2 stuck · {HOST}</title>" in served.text()


def test_without_a_hold_proof_the_page_never_says_that_nobody_holds_the_lock(
    serving: Serving,
) -> None:
    """A live holder holds the lock for longer than it may, and the lock cannot be probed."""
    served = serving()
    unproven: dict[str, Any] = {"proof": HoldProof.UNAVAILABLE, "proof_note": "no-rights"}
    put(served.inventory, age=99_999.0, file_age=99_999.0, **unproven)
    assert first_line(served).endswith(" UTC, taken by pid 7, which still runs.")
    for phrase in ("held by nobody", "nobody holds", "nobody has"):
        assert phrase not in served.text().lower()


def test_locks_that_cannot_be_judged_are_a_doubt_with_advice(serving: Serving) -> None:
    served = serving()
    unprobed(served.inventory)
    assert first_line(served) == "Unknown: 1 lock cannot be judged."
    assert level(served) == "doubt"
    assert "Run the reaper as uid " in served.text()
    served.not_ready = "a folder cannot be read (unreadable)"
    assert first_line(served) == "Unknown: a folder cannot be read (unreadable)."


def test_a_state_directory_without_sessions_is_a_doubt_even_beside_one_with_locks(
    serving: Serving,
) -> None:
    """It may be the wrong one, because a mistyped mount is an empty directory."""
    served = serving(states=[StateDir("s", "/state"), StateDir("void", "/void")])
    served.inventory.set_skipped([Skipped(path="/void", reason=NO_SESSIONS, note="set it")])
    put(served.inventory, session="healthy")
    assert level(served) == "doubt"
    assert first_line(served).startswith("Unknown: 1 state directory has no sessions folder.")
    assert "<p>/void: set it.</p>" in served.text()
    hidden = served.text(Host="evil.example")
    assert "<p>State void: no-sessions.</p>" in hidden
    served.inventory.set_skipped([])
    assert level(served) == "good"


def test_an_empty_directory_is_never_green(tmp_path: Path) -> None:
    """Docker creates one for a mount with a mistyped path."""
    sidecar = Sidecar(tmp_path)
    try:
        until(lambda: "agents folder" in sidecar.get("/"))
        page = sidecar.get("/")
        assert 'class="answer doubt"' in page
        assert "<h1>Unknown: a state directory has no agents folder.</h1>" in page
        assert f"<p>{tmp_path}/agents: this state directory has no agents folder: " in page
        assert "could not be read: see" not in page
        assert 'State directories</dt><dd class="doubt">a state directory has no agents' in page
    finally:
        sidecar.stop()


@pytest.mark.parametrize(
    ("skipped", "line"),
    [
        (Skipped("/s/sessions.json", "session-store", failed=True), "1 file could not be read."),
        (Skipped("/s", SESSIONS_ELSEWHERE, note="look"), "the gateway keeps sessions in a folder"),
    ],
)
def test_an_unchecked_file_is_a_doubt(serving: Serving, skipped: Skipped, line: str) -> None:
    served = serving(states=[StateDir("s", "/s")])
    served.inventory.set_skipped([skipped])
    assert first_line(served).startswith(f"Unknown: {line}")
    served.inventory.set_skipped([Skipped(path="/s/x", reason="not-regular")])
    assert first_line(served) == "No session is stuck."


def holder(*why: str) -> dict[str, Any]:
    name = HolderName("s", 7, 1, visible=True)
    load = Load(stuck_locks=1, removed_locks=3, resident_bytes=5 * 2**30)
    return HolderHealth(name, load, why).as_record()


def test_the_page_reports_a_wedged_holder_and_what_helps(serving: Serving) -> None:
    served = serving()
    served.wedged_holders = [holder("leaked-sessions")]
    assert first_line(served) == "No session is stuck, but pid 7 is wedged."
    assert (
        "Pid 7 (state s) is wedged: 4 leaked sessions. Removing locks does not help. Restart it"
    ) in served.text()
    served.wedged_holders = [holder("resident-memory"), holder("leaked-sessions")]
    assert "Pid 7 (state s) is wedged: 5120 MiB of memory. Removing" in served.text()
    stale(served.inventory, session="sid")
    assert first_line(served).startswith("1 session is stuck: ")
    assert "is wedged: " in served.text()


# A worker that stopped


def test_no_age_grows_after_the_worker_has_stopped(serving: Serving) -> None:
    served = serving()
    stale(served.inventory, session="sid", age=500.0)
    served.inventory.remember(lock_record(a_lock()._replace(outcome=Outcome.REMOVED)), 1)
    served.stopped_at = time.monotonic() + 100.0  # the ages count to this time
    before = served.text()
    assert ">10m 00s<" in before
    assert first_line(served) == "The reaper has stopped responding. This page is out of date."
    assert f"<title>stopped · {HOST}</title>" in before
    assert 'id="known" class="old"' in before
    served.stopped_at -= 50.0
    assert ">9m 10s<" in served.text()
    assert json.loads(served.text("/api/v1/locks"))["locks"][0]["age_seconds"] == pytest.approx(
        550.0, abs=5
    )


def test_after_the_worker_has_stopped_no_sentence_is_about_now(serving: Serving) -> None:
    served = serving()
    served.stopped_at = time.monotonic() - 75.0
    page = served.text()
    assert "There are no locks now" not in page
    assert ", 1m 15s ago. Restart the reaper." in re.sub("</?time.*?>", "", page)
    put(served.inventory, age=100.0)
    assert "Messages to it" not in served.text()
    assert "1 minute before that: none known to be stuck" in served.text()
    served.stopped_at = None
    assert "1 session has been locked for longer than 1m 00s. Messages to it" in served.text()
