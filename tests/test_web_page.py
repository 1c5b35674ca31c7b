"""The page below its first line: what it shows of each lock, and to whom."""

import base64
import hashlib
import json
import os
import re

import pytest

from reaper.core.evidence import Holder, HolderState, HoldProof, Run, Unmet
from reaper.core.finding import Skipped
from reaper.core.lock import StateDir
from reaper.core.policy import Action, Outcome, Policy
from reaper.reports import links
from reaper.reports.records import lock_record
from reaper.web.chart import chart
from reaper.web.state import policy_in_words
from tests.conftest import Tree, record
from tests.serving import (
    HOST,
    SECRET,
    Served,
    Serving,
    full_of_names,
    overdue,
    put,
    stale,
    unprobed,
)
from tests.sidecar import Sidecar, until
from tests.test_metrics import a_lock

# The table


def rows(page: str) -> list[str]:
    return re.findall(r'<tr id="lock-.*?</tr>', page, re.DOTALL)


def titles(page: str) -> list[str]:
    """Return the titles of the groups as text."""
    return [
        re.sub("<.*?>", "", heading) for heading in re.findall(r"<summary><h2>(.*?)</h2>", page)
    ]


KEY = "agent:main:telegram:direct:4711"


def test_locks_are_grouped_by_holder_with_stuck_locks_first(serving: Serving) -> None:
    served = serving()
    put(served.inventory, session="healthy")
    put(served.inventory, session="healthy too")
    put(served.inventory, session="of another", holder=Holder(state=HolderState.SAME, pid=8))
    overdue(served, "late")
    overdue(served, "later")
    stale(served.inventory, session="left", age=700.0)
    unprobed(served.inventory, session="blind")
    page = served.text()
    assert titles(page) == [
        "Held by pid 7: 2 stuck, 2 other locks",
        "Left by processes that have exited: 1 stuck",
        "With an unknown holder: 1 cannot be judged",
        "Held by pid 8: 1 lock",
    ]
    assert len(rows(page)) == 7
    # Only groups with a problem are unfolded; their healthy locks are not.
    assert re.findall(r'<details class="group" id="held-\w+"( open)?>', page) == [
        " open",
        " open",
        " open",
        "",
    ]
    assert "<summary>2 other locks, held</summary>" in page


def test_several_holders_without_stuck_locks_are_one_group(serving: Serving) -> None:
    served = serving()
    overdue(served, "late")
    put(served.inventory, session="healthy")
    for pid in (8, 9):
        put(served.inventory, session=f"of {pid}", holder=Holder(state=HolderState.SAME, pid=pid))
    page = served.text()
    assert titles(page) == ["Held by pid 7: 1 stuck, 1 other lock", "Not stuck: 2 locks"]


@pytest.mark.parametrize("state", [HolderState.SAME, HolderState.UNNAMED])
def test_a_lock_that_is_too_new_to_be_judged_is_not_shown_as_held(
    serving: Serving, state: HolderState
) -> None:
    served = serving()
    holder = Holder(state=state, pid=7 if state is HolderState.SAME else None)
    put(served.inventory, session="new", proof=HoldProof.NOT_OPEN, holder=holder, file_age=1.0)
    for pid in (8, 9):
        put(served.inventory, session=f"of {pid}", holder=Holder(state=HolderState.SAME, pid=pid))
    new, healthy = titles(served.text())
    assert new.endswith(": 1 too new to be judged")
    assert healthy == "Not stuck: 2 locks"
    assert next_step(served).startswith("Wait some seconds")


def test_a_common_reason_is_shown_once_and_each_lock_has_its_command(serving: Serving) -> None:
    served = serving()
    for number in range(20):
        overdue(served, f"late-{number}")
    page = served.text()
    assert page.count("Not removed because") == page.count("<b>Next:</b>") == 1
    assert page.count("See whether the run still writes.") == 1
    plain = re.sub("</?span.*?>", "", page)
    for number in range(20):
        assert f'<code class="command">reaper explain late-{number}</code>' in plain


def test_a_row_shows_the_session_key_or_else_the_id(serving: Serving) -> None:
    served = serving()
    overdue(served, "an-id", run=Run(session_key=KEY, last_write_ms=9_000))
    put(served.inventory, session="keyless")
    late, healthy = rows(served.text().replace("<wbr>", ""))
    assert re.search(rf'<a class="self" href="#lock-\w+">{KEY}</a>', late)
    assert "agent main" not in late  # the key names the agent
    assert "last write <time" in late
    assert re.search(r'<a class="self" href="#lock-\w+"><code class="word">keyless</code>', healthy)
    assert "agent main" in healthy


def test_the_runbook_is_linked_if_the_project_has_an_address(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serving()
    overdue(served, "late")
    assert "(docs/runbook.md#overdue)" in served.text()
    monkeypatch.setattr(links, "_address", lambda _: "https://reaper.example")
    link = '<a href="https://reaper.example/docs/runbook.md#overdue" rel="noreferrer">'
    assert link in served.text()


def why(served: Served) -> str:
    (found,) = re.findall(r"<b>Not removed because</b> (.*?)</p>", served.text())
    return str(found)


def next_step(served: Served) -> str:
    (found,) = re.findall(r"<b>Next:</b> (.*?) <", served.text())
    return str(found)


@pytest.mark.parametrize(
    ("outcome", "text", "step"),
    [
        (Outcome.FAILED, "the removal failed: EPERM.", "Fix what made the removal fail"),
        (Outcome.CHANGED, "another lock has its name now.", "Look again: "),
        (Outcome.RESTORED, "another lock has its name now.", "Look again: "),
        (Outcome.WOULD_REMOVE, "this is a dry run.", "Nothing was removed, because"),
    ],
)
def test_a_stuck_lock_shows_why_it_is_not_removed_and_what_to_do(
    serving: Serving, outcome: Outcome, text: str, step: str
) -> None:
    served = serving()
    seen = stale(served.inventory, session="sid", note="EPERM")
    served.inventory.put("sid", seen._replace(outcome=outcome))
    assert why(served) == text
    assert next_step(served).startswith(step)
    assert "EPERM" not in served.text(Host="evil.example")


def test_the_policy_and_a_grace_are_shown_as_reasons(serving: Serving) -> None:
    served = serving()
    seen = stale(served.inventory, session="sid")
    served.inventory.put("sid", seen._replace(action=Action.FLAG))
    assert why(served).startswith("the reaper only reports such locks")
    once = seen.judgement._replace(confirmed=False, unmet=Unmet.SEEN_ONCE)
    once_seen = seen._replace(judgement=once, action=Action.FLAG, outcome=Outcome.FLAGGED)
    served.inventory.put("sid", once_seen)
    assert why(served) == "it was seen only once, and a sweep looks twice."
    assert next_step(served) == (
        "Nothing to do: the reaper checks again soon, and removes the lock if nothing has changed."
    )


def test_a_row_shows_how_often_the_session_was_freed_before(serving: Serving) -> None:
    served = serving()
    seen = stale(served.inventory, session="sid")
    for _ in range(3):
        served.inventory.remember(lock_record(seen._replace(outcome=Outcome.REMOVED)), 1)
    (row,) = rows(served.text())
    assert "removed 3 times before" in row
    assert '<b class="">removed 3 times</b>' in served.text()
    served.inventory.remember(lock_record(seen._replace(outcome=Outcome.FLAGGED)), 1)
    assert '<b class="">reported</b>' in served.text()


def test_the_page_shows_200_locks_and_says_where_the_others_are(serving: Serving) -> None:
    """Stuck locks come before all others, no matter which process holds them."""
    served = serving()
    for number in range(300):
        put(served.inventory, session=f"s{number}", age=float(number))
    stale(served.inventory, session="dead", age=700.0)
    overdue(served, "late", holder=Holder(state=HolderState.SAME, pid=8))
    page = served.text()
    assert len(rows(page)) == 200
    assert "And 102 locks more" in page
    assert titles(page) == [
        "Held by pid 8: 1 stuck",
        "Left by processes that have exited: 1 stuck",
        "Held by pid 7: 300 locks",
    ]


def test_locks_are_ordered_by_the_times_that_they_show(serving: Serving) -> None:
    """The ages of one sweep may be measured up to a second apart."""
    served = serving()
    for session, since in (("later", "1970-01-01T00:00:10.000Z"), ("first", "1970-01-01T00:00:09")):
        seen = stale(served.inventory, session=session, age=700.0)
        text = f'{{"pid": 7, "createdAt": "{since}"}}'
        from reaper.core.record import parse

        lock = seen.lock._replace(record=parse(text.encode()))
        seen = seen._replace(lock=lock, evidence=seen.evidence._replace(lock=lock))
        served.inventory.put(session, seen._replace(at=seen.at + (session == "first")))
    first, later = rows(served.text())
    assert "first" in first
    assert "later" in later


# Names


def test_the_page_without_names_shows_all_else_and_how_to_see_the_names(serving: Serving) -> None:
    served = serving(inventory=full_of_names(), show_sessions="authenticated")
    page = served.text()
    assert "1 session is stuck" in page
    assert page.count("a session of agent main") == 4  # three locks, and an action
    assert '<b class="bad">Stale</b>: ' in page
    assert "11m 40s" in page
    assert '<dt>Cannot be read</dt><dd class="bad">unreadable</dd>' in page
    assert "None" not in page
    plain = re.sub("</?(span|code).*?>", "", page)
    assert "run docker exec reaper reaper list" in plain
    assert "start the reaper with REAPER_SHOW_SESSIONS=all" in plain


def test_hostile_names_are_text_on_the_page(serving: Serving) -> None:
    name = "<script>alert(1)</script>\x1b[31m\n$state ${x} {y}" + os.fsdecode(b"\xff")
    agent = "<b>&amp;'\" {z}"
    served = serving(states=[StateDir(name, f"/{name}"), StateDir("s", "/s")])
    for number, put_lock in enumerate((stale, unprobed, put)):
        seen = put_lock(served.inventory, session=f"{name}{number}", agent=agent)
        key = seen.evidence.run._replace(session_key=f"agent:{name}")
        for index, found in enumerate(
            (seen, seen._replace(evidence=seen.evidence._replace(run=key)))
        ):
            failed = found._replace(outcome=Outcome.FAILED, note=name)
            served.inventory.put(f"{number}-{index}", failed)
            served.inventory.remember({**lock_record(failed), "path": f"{number}{index}"}, 1)
    served.inventory.set_skipped(
        [
            Skipped(path=f"/{name}", reason=name, failed=True, note=name),
            Skipped(path=f"/{name}", reason="sqlite-sessions", note=name),
        ]
    )
    page = served.text()
    assert len(rows(page)) == 9
    assert page.count("<script>") == 1
    assert page.count("&lt;script&gt;alert(1)") > 20
    assert "<b>&" not in page
    assert "\x1b" not in page
    assert "{y}" in page
    script = page.index("<script>")
    assert "\\n" not in page[:script].replace("\\n$state", "")  # only in names
    json.loads(served.text("/api/v1/locks"))


# Around the table


def test_the_page_names_its_machine_and_says_what_is_removed(serving: Serving) -> None:
    page = serving().text()
    assert (
        f"<b>{HOST}</b> · uid 1000 · /secret-session/state · removes stale, orphaned and "
        "abandoned locks; reports overdue ones"
    ) in page
    assert policy_in_words(Policy(Action.FLAG, Action.REMOVE), dry_run=False) == (
        "removes stale, orphaned and overdue locks; reports abandoned ones"
    )
    assert policy_in_words(Policy(on_other=Action.REMOVE), dry_run=False).endswith(
        "reports overdue ones; removes OpenClaw's other locks too"
    )


def test_the_page_of_a_dry_run_says_that_nothing_is_removed(serving: Serving) -> None:
    served = serving(dry_run=True)
    assert "This is a dry run: nothing is removed." in served.text()
    assert "dry run" not in serving().text()


def test_recent_actions_are_bounded_and_repeated_ones_are_counted(serving: Serving) -> None:
    served = serving()
    assert "None since the reaper started" in served.text()
    record = lock_record(a_lock()._replace(outcome=Outcome.FAILED))
    for number in range(100):
        served.inventory.remember({**record, "path": f"/{number}", "session": f"n{number}"}, number)
    for _ in range(200):
        served.inventory.remember({**record, "path": "/1", "session": "again"}, 1000)
    actions = served.inventory.recent_actions()
    assert len(actions) == 50
    # It is counted although it was no longer among the latest.
    latest = actions[0]
    assert (latest.record["session"], latest.times, latest.at_ms) == ("again", 201, 1000)
    assert actions[1].record["session"] == "n99"
    assert "failed 201 times" in served.text()
    assert "<summary>42 earlier actions</summary>" in served.text()
    for number in range(2000):
        served.inventory.remember({**record, "path": f"/{number}"}, 1001)
    assert len(served.inventory._times) == 1000


def test_an_action_of_the_sidecar_is_on_its_page(tree: Tree) -> None:
    tree.lock("dead", record(2**22 + 1))
    sidecar = Sidecar(tree.root)
    try:
        until(lambda: sidecar.journal("removed"))
        page = sidecar.get("/")
        assert re.search(
            r'dead</code>.*<b class="">removed</b>: stale \(dead-pid\)', page, re.DOTALL
        )
        assert '<dt>Removed since start</dt><dd class="">1</dd>' in page
        assert "Last 1 minute: " in page
    finally:
        sidecar.stop()


@pytest.mark.parametrize(
    ("most", "caption"),
    [
        ([0] * 60, "Last hour: none known to be stuck"),
        ([0] * 58 + [3, 1], "Last hour: at most 3 sessions stuck"),
        ([1], "Last 1 minute: at most 1 session stuck"),
    ],
)
def test_the_chart_of_the_last_hour_says_what_it_shows(most: list[int], caption: str) -> None:
    picture = chart(most)
    assert f"<figcaption>{caption}</figcaption>" in picture
    assert f'aria-label="{caption}"' in picture
    assert ("stuck" in re.findall('class="(.*?)"', picture)) is (max(most) > 0)
    assert f"M{60 - len(most)} 24" in picture  # minutes without data are blank


def test_without_data_there_is_no_chart() -> None:
    assert chart([]) == ""


def test_times_are_in_utc_until_the_browser_makes_them_local(serving: Serving) -> None:
    served = serving()
    page = served.text()
    assert re.search(r'<span id="now"><time datetime="[\d-]+T[\d:.]+Z">[\d:]+ UTC</time>', page)
    put(served.inventory)._replace()
    seen = put(served.inventory)
    lock = seen.lock._replace(record=seen.lock.record._replace(created_at_ms=-(10**17)))
    served.inventory.put(SECRET, seen._replace(lock=lock))  # a year that no calendar has
    assert "since -100000000000000000 ms after 1970" in served.text()


def test_the_content_security_policy_allows_only_the_pages_style_and_script(
    serving: Serving,
) -> None:
    answered = serving().ask("/")
    policy = answered.getheader("Content-Security-Policy") or ""
    text: str = answered.text  # type: ignore[attr-defined]
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "style=" not in text
    assert not re.search(r"\son\w+=", text)
