"""The page in headless Chromium, checked by axe in each state, light and dark, on phone and desk.

With SCREENSHOTS=FOLDER it writes the pictures for the documents there.
"""

import itertools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reaper.core.finding import Skipped
from reaper.core.lock import StateDir
from reaper.core.policy import Outcome
from reaper.reports.records import lock_record
from tests import needs
from tests.browser import SIZES, Browser
from tests.openclaw_package import Unavailable, cache, npm_install
from tests.page_scenes import KINDS, abandoned, fill, ident, overdue, seen
from tests.serving import Served
from tests.sidecar import until

AXE = "axe-core@4.10.3"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def axe() -> str:
    folder = cache() / AXE
    try:
        npm_install(folder, AXE)
    except Unavailable as why:
        needs.not_tested(f"with axe: {why}", cure="npm's registry")
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served(states=[StateDir("openclaw", "/home/node/.openclaw")])
    yield served
    served.web.stop()


STRANGER = "stranger.example"
"""Another name of this machine; a client that uses it sees no session names."""


@pytest.mark.parametrize(
    "view",
    [
        *itertools.product(KINDS, SIZES, ["light", "dark"], ["localhost"]),
        *itertools.product(["stuck", "all"], SIZES, ["light", "dark"], [STRANGER]),
    ],
)
def test_axe_finds_nothing_and_the_page_does_not_scroll_sideways(
    browser: Browser, axe: str, served: Served, view: tuple[str, str, str, str]
) -> None:
    """Also with everything unfolded, and under a strange name of this machine."""
    kind, size, scheme, host = view
    fill(served, kind)
    browser.show(f"http://{host}:{served.port}/", size=size, scheme=scheme)
    names = browser.run("return [...document.querySelectorAll('.self')].map(el => el.textContent)")
    assert all(name.startswith("a session of agent ") for name in names) is (
        host == STRANGER or not names
    )
    for folded in (True, False):
        if not folded:
            browser.run("document.querySelectorAll('details').forEach(el => { el.open = true; })")
        widths = browser.run(
            "return [document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]"
        )
        assert widths[0] <= widths[2] == SIZES[size][0]
        assert widths[1] <= widths[2]
        assert browser.run(
            "const box = document.querySelector('h1').parentElement;"
            "return box.scrollWidth <= box.clientWidth"
        )
    browser.run(axe + "; window.axe = axe")
    found = browser.run("return axe.run(document, {resultTypes: ['violations', 'incomplete']})")
    assert found["violations"] == []
    # Rules that axe cannot decide; a person must check each once.
    assert {problem["id"] for problem in found["incomplete"]} == set()
    assert len(found["passes"]) > 10
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (scheme == "light")
    assert browser.complaints() == []


@pytest.mark.parametrize("scene", ["sixty", "sixty, yesterday"])
@pytest.mark.parametrize("hour", [0, 12])
def test_sixty_stuck_locks_fit_on_three_screens(
    browser: Browser, served: Served, hour: int, scene: str
) -> None:
    """Also after midnight, and with dates."""
    fill(served, scene)
    west = (time.gmtime().tm_hour - hour) % 24
    zone = f"Etc/GMT{west if west <= 12 else west - 24:+}"
    browser.show(f"http://localhost:{served.port}/", size="desk", scheme="light", zone=zone)
    dates = browser.run(
        "return [...document.querySelectorAll('#locks td time')]"
        ".filter(el => /[A-Z]/.test(el.textContent)).length"
    )
    assert dates == (0 if scene == "sixty" else 60)
    end = browser.run("return document.getElementById('locks').getBoundingClientRect().bottom")
    assert browser.run("return document.querySelectorAll('#locks tr[id]').length") == 63
    assert end <= 3 * SIZES["desk"][1]


def test_no_line_breaks_within_an_id(browser: Browser, served: Served) -> None:
    fill(served, "sixty")
    for size in SIZES:
        browser.show(f"http://localhost:{served.port}/", size=size, scheme="light")
        heights = browser.run(
            "return [...document.querySelectorAll('.command .word')]"
            ".map(el => [el.getClientRects().length, el.scrollWidth <= el.clientWidth])"
        )
        assert len(heights) > 100
        assert all(height == [1, True] for height in heights)


def test_the_page_renews_itself_and_says_when_it_cannot(browser: Browser, served: Served) -> None:
    fill(served, "nothing")
    browser.show(f"http://localhost:{served.port}/", size="phone", scheme="light")
    browser.run("window.same = document.querySelector('h1')")

    def headline() -> str:
        text: str = browser.run("return document.querySelector('h1').textContent")
        return text

    assert headline() == "No session is stuck."
    fill(served, "all")
    until(lambda: headline().startswith("2 sessions are stuck: the first locked since "))
    assert browser.run("return document.title") == "2 stuck · gateway-1"
    assert browser.run("return document.querySelectorAll('tr').length") > 50
    # A screen reader listens to this element, so it must not be replaced.
    assert browser.run("return window.same === document.querySelector('h1')")
    assert browser.complaints() == []
    assert browser.run("return document.getElementById('lost').hidden")
    served.web.stop()
    until(lambda: not browser.run("return document.getElementById('lost').hidden"))
    lost = browser.run("return document.getElementById('lost').textContent")
    assert re.fullmatch(
        r"No answer from the reaper since [\d: \u202fAPM]+. This page is out of date.", lost
    )
    assert browser.run("return document.title") == "no answer · 2 stuck · gateway-1"
    # Only the line that says so has a colour.
    colours = (
        "[...document.querySelectorAll('main .bad, main .doubt')].filter(el => el.id !== 'lost')"
    )
    found = browser.run(f"return {colours}.map(el => getComputedStyle(el).color)")
    assert len(set(found)) == 1
    age = "document.querySelector('#locks td span').textContent"
    assert browser.run(f"return {age}") == browser.run(f"return {age}")
    assert all("ERR_CONNECTION_REFUSED" in complaint for complaint in browser.complaints())


def test_folds_and_filters_stay_while_the_page_renews_itself(
    browser: Browser, served: Served
) -> None:
    fill(served, "sixty")
    browser.show(f"http://localhost:{served.port}/", size="desk", scheme="light")
    browser.run("document.querySelector('.group').open = false")
    browser.run(
        "const box = document.querySelector('#filter input'); box.value = 'NIGHTLY-report5 ';"
        "box.dispatchEvent(new Event('input'))"
    )
    visible = "[...document.querySelectorAll('#locks tr[id]')].filter(el => el.checkVisibility())"

    def found() -> list[str]:
        texts: list[str] = browser.run(
            f"return {visible}.map(el => el.querySelector('.self').textContent)"
        )
        return texts

    before = found()
    assert before
    assert all("nightly-report5" in name for name in before)
    shown = browser.run("return document.querySelector('#filter span').textContent")
    assert shown == f"{len(before)} of 63 locks"
    # A new lock of a holder that comes first in the table.
    served.inventory.put("new", overdue(999, age=99_999.0, pid=1, key="new"))
    until(lambda: "61 sessions" in browser.run("return document.querySelector('h1').textContent"))
    assert found() == before
    browser.run(
        "const box = document.querySelector('#filter input'); box.value = '';"
        "box.dispatchEvent(new Event('input'))"
    )
    browser.run("document.querySelectorAll('.group')[1].open = false")
    title = "document.querySelectorAll('.group')[1].querySelector('h2').textContent"
    folded = browser.run(f"return {title}")
    served.inventory.drop("new")
    until(lambda: "60 sessions" in browser.run("return document.querySelector('h1').textContent"))
    closed = browser.run(
        "return [...document.querySelectorAll('.group')].filter(el => !el.open)"
        ".map(el => el.querySelector('h2').textContent)"
    )
    assert closed == [folded]
    assert browser.complaints() == []


def test_the_page_has_a_filter_from_ten_locks_on(browser: Browser, served: Served) -> None:
    for number in range(9):
        served.inventory.put(number, seen(number))
    browser.show(f"http://localhost:{served.port}/", size="desk", scheme="light")
    hidden = "return document.getElementById('filter').hidden"
    assert browser.run(hidden)
    served.inventory.put(9, seen(9))
    until(lambda: not browser.run(hidden))


def test_a_click_copies_a_command_and_each_row_has_an_address(
    browser: Browser, served: Served
) -> None:
    fill(served, "one")
    browser.show(f"http://localhost:{served.port}/", size="desk", scheme="light")
    click = "document.querySelector('.command').click()"
    browser.cdp("Runtime.evaluate", expression=click, userGesture=True)
    message = "return document.getElementById('copied').textContent"
    until(lambda: browser.run(message) == f"Copied: reaper explain {ident(4)}")
    link = browser.run("return document.querySelector('.self').hash")
    browser.run("document.querySelector('.self').click()")
    assert browser.run("return document.querySelector('tr:target').id") == link[1:]


def test_times_are_in_the_time_zone_of_the_reader(browser: Browser, served: Served) -> None:
    fill(served, "one")
    url = f"http://localhost:{served.port}/"
    browser.show(url, size="desk", scheme="light", zone="Asia/Kolkata")
    text, title = browser.run(
        "const el = document.querySelector('#now time'); return [el.textContent, el.title]"
    )
    assert title.endswith("Z")
    assert "UTC" not in text
    assert text.split(":")[1] != title.split(":")[1]  # half an hour apart
    assert browser.run("return document.getElementById('zone').textContent") == (
        "time zone: Asia/Calcutta"
    )


def test_without_javascript_the_page_is_complete(browser: Browser, served: Served) -> None:
    fill(served, "sixty")
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.show(f"http://localhost:{served.port}/", size="phone", scheme="dark")
    finally:
        browser.cdp("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.run("return document.getElementById('filter').hidden")
    assert "UTC" in browser.run("return document.querySelector('h1').textContent")
    assert browser.run("return document.querySelectorAll('#locks tr[id]').length") == 63


def test_hostile_names_run_nothing_in_a_browser(browser: Browser, served: Served) -> None:
    name = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>"
    stuck = overdue(4, session=name, agent="</h2><style>*{display:none}</style>", key=name)
    served.inventory.put(1, stuck)
    served.inventory.put(2, abandoned(5)._replace(outcome=Outcome.FAILED, note=name))
    served.inventory.remember(lock_record(stuck), 1)
    served.inventory.set_skipped([Skipped(path=name, reason=name, failed=True, note=name)])
    browser.show(f"http://localhost:{served.port}/", size="desk", scheme="dark")
    assert browser.run("return window.hit === undefined")
    assert name in browser.run("return document.querySelector('.self').textContent")
    assert name[-30:] in browser.run("return document.querySelector('.command').textContent")
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
    assert browser.complaints() == []


LOOKS = (("desk", "light"), ("phone", "dark"))


@pytest.mark.parametrize("kind", [*(scene for scene in KINDS if scene != "all"), "hidden"])
@pytest.mark.parametrize("look", LOOKS)
def test_the_pictures_for_the_documents_have_a_sensible_size(
    browser: Browser, served: Served, tmp_path: Path, kind: str, look: tuple[str, str]
) -> None:
    size, scheme = look
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    host = STRANGER if kind == "hidden" else "localhost"
    fill(served, "stuck" if kind == "hidden" else kind)
    browser.show(f"http://{host}:{served.port}/", size=size, scheme=scheme)
    name = "page" if kind == "stuck" else f"page-{kind}"
    path = folder / f"{name}-{size}-{scheme}.png"
    browser.picture(path)
    smaller = shutil.which("pngquant")
    if smaller:
        subprocess.run([smaller, "--force", "--ext=.png", path], check=True)
    assert 5_000 < path.stat().st_size < 200_000
