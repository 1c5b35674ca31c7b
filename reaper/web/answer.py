"""The first line of the page: how bad it is, what is stuck, since when, and who holds it."""

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from reaper.core.evidence import DEAD, Evidence, HolderState, HoldProof
from reaper.web.html import Html, capital, html, many, moment


class Level(Enum):
    GOOD = "good"
    DOUBT = "doubt"
    """Unknown, because something could not be read or judged."""
    BAD = "bad"


class Holding(NamedTuple):
    """Who holds a lock, for use in a sentence. `together` is the title of the group that contains
    all such locks, None if `who` is the title.
    """

    who: str
    together: str | None = None


def holding(evidence: Evidence) -> Holding:
    """Return who holds the lock: "nobody" only if the hold proof says so."""
    pid, holder = evidence.lock.record.pid, evidence.holder
    match evidence.proof:
        case HoldProof.OPEN:
            return Holding(_open_in(pid, evidence))
        case HoldProof.NOT_OPEN:
            return _held_by_nobody(pid, holder.state)
        case HoldProof.UNAVAILABLE if holder.state is HolderState.SAME:
            return Holding(f"taken by pid {holder.pid or pid}, which still runs")
        case HoldProof.UNAVAILABLE if holder.state in DEAD and evidence.holder_seen_alive:
            return Holding(f"left by pid {pid}, which has exited", _LEFT)
        case _:
            named = "" if pid is None else f" (the lock names pid {pid})"
            return Holding(f"with an unknown holder{named}", "With an unknown holder")


_LEFT: Final = "Left by processes that have exited"


def _open_in(pid: int | None, evidence: Evidence) -> str:
    if evidence.holder.state is HolderState.SAME:
        return f"held by pid {evidence.holder.pid or pid}"
    named = "it names none" if pid is None else f"the lock names pid {pid}"
    return f"held by a process that cannot be identified ({named})"


def _held_by_nobody(pid: int | None, state: HolderState) -> Holding:
    nobody = "held by nobody"
    if pid is None:
        return Holding(nobody, "Held by nobody")
    match state:
        case HolderState.GONE | HolderState.ZOMBIE:
            return Holding(f"left by pid {pid}, which has exited", _LEFT)
        case HolderState.REUSED:
            who = f"left by a process that has exited (pid {pid} is another process now)"
            return Holding(who, _LEFT)
        case HolderState.SAME:
            return Holding(f"{nobody}, although it names pid {pid}, which is alive")
        case _:
            return Holding(f"{nobody}, although it names pid {pid}", "Held by nobody")


class Stuck(NamedTuple):
    """The session that has been stuck longest: when it was locked (epoch ms), and by whom."""

    since_ms: int
    evidence: Evidence


class Facts(NamedTuple):
    """The facts for the first line.

    `stopped`: the worker has stopped, so all other facts are old. `not_ready`: why the last full
    sweep did not see every folder. `void`: number of state directories without sessions folders.
    `elsewhere`: number of state directories with sessions in a folder that the reaper does not
    watch. `others_…`: locks that are not session locks.
    """

    stopped: bool = False
    not_ready: str = ""
    stuck: int = 0
    first: Stuck | None = None
    unjudged: int = 0
    unread: int = 0
    void: int = 0
    elsewhere: int = 0
    wedged: Sequence[int] = ()
    others_stuck: int = 0
    others_unjudged: int = 0


class Answer(NamedTuple):
    level: Level
    line: Html
    brief: str
    """For the title of the browser's tab."""


def answer(facts: Facts) -> Answer:
    """Return the worst fact; GOOD only if all facts are known and good."""
    if facts.stopped:
        line = "The reaper has stopped responding. This page is out of date."
        return Answer(Level.BAD, html("{line}", line=line), "stopped")
    if facts.stuck:
        return Answer(Level.BAD, _stuck(facts), f"{facts.stuck} stuck")
    why = _why_unknown(facts)
    problem, brief = _other_problem(facts)
    if problem:
        line = f"No session is stuck, but {problem}."
        if why:
            line = f"{capital(problem)}. Unknown: {why}"
        return Answer(Level.BAD, html("{line}", line=line), brief)
    if why:
        return Answer(Level.DOUBT, html("Unknown: {why}", why=why), "unknown")
    return Answer(Level.GOOD, Html("No session is stuck."), "0 stuck")


def _other_problem(facts: Facts) -> tuple[str, str]:
    """Return what is wrong although no session is known to be stuck, in words and for the tab;
    empty if nothing is.
    """
    if facts.wedged:
        pids = facts.wedged
        who = f"pid {pids[0]} is" if len(pids) == 1 else f"{len(pids)} processes are"
        return f"{who} wedged", "wedged"
    if facts.others_stuck:
        others = many(facts.others_stuck, "other lock")
        verb = "is" if facts.others_stuck == 1 else "are"
        return f"{others} of OpenClaw {verb} stuck", f"{others} stuck"
    return "", ""


def _stuck(facts: Facts) -> Html:
    many_stuck = facts.stuck > 1
    what = f"{facts.stuck} sessions are stuck" if many_stuck else "1 session is stuck"
    if facts.first is None:
        return html("{what}.", what=what)
    return html(
        "{what}: {first}locked since {since}, {who}.",
        what=what,
        first="the first " if many_stuck else "",
        since=moment(facts.first.since_ms),
        who=holding(facts.first.evidence).who,
    )


def _why_unknown(facts: Facts) -> str:
    has = "directory has" if facts.void == 1 else "directories have"
    reasons = (
        (facts.not_ready, f"{facts.not_ready}."),
        (facts.void, f"{facts.void} state {has} no sessions folder. Is the path right?"),
        (facts.unjudged, f"{many(facts.unjudged, 'lock')} cannot be judged."),
        (facts.unread, f"{many(facts.unread, 'file')} could not be read."),
        (facts.elsewhere, "the gateway keeps sessions in a folder that the reaper does not watch."),
        (facts.others_unjudged, f"{many(facts.others_unjudged, 'other lock')} cannot be judged."),
    )
    return next((why for holds, why in reasons if holds), "")
