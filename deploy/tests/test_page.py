"""The page in headless Chromium: read by axe, in light and dark, on a phone and a desk.

Chromium is driven by the W3C's WebDriver protocol, a few JSON requests to chromedriver. With
SCREENSHOTS=FOLDER the pictures for the documents are written there.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reaper.core.evidence import (
    Evidence,
    Holder,
    HolderState,
    HoldProof,
    Program,
    Run,
    RunEnd,
    RunState,
    StoreStatus,
)
from reaper.core.finding import Skipped
from reaper.core.lock import FileId, Lock, iso
from reaper.core.policy import Outcome
from reaper.core.record import parse
from reaper.reports.inventory import LockInventory
from reaper.reports.records import Seen, lock_record
from tests import needs
from tests.conftest import judged
from tests.openclaw_package import Unavailable, cache, npm_install
from tests.sidecar import port_of, until
from tests.test_web import Served

AXE = "axe-core@4.10.3"
HOSTS = ("localhost", "stranger.example")
SIZES = {"phone": (360, 740), "desk": (1280, 900)}


class Browser:
    """A session of headless Chromium."""

    def __init__(self, folder: Path) -> None:
        for program in ("chromium", "chromedriver"):
            needs.program(program)
        self._process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.DEVNULL)
        self._port: int = until(lambda: port_of(self._process.pid))
        arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        arguments += ["--hide-scrollbars", f"--user-data-dir={folder}"]
        arguments += ["--host-resolver-rules=MAP *.example 127.0.0.1"]
        options = {"args": arguments, "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = ""
        until(self._answers, "a chromedriver that answers")
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def _answers(self) -> bool:
        try:
            return bool(self._ask("GET", "/status")["ready"])
        except OSError:
            return False

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{self._session}{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def cdp(self, command: str, **parameters: Any) -> Any:
        body = {"cmd": command, "params": parameters}
        return self._ask("POST", "/goog/cdp/execute", body)

    def show(self, url: str, *, size: str, scheme: str) -> None:
        width, height = SIZES[size]
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == "phone",
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.cdp("Emulation.setEmulatedMedia", features=[feature])
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """Run the body of a function; a promise that it returns is waited for."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def complaints(self) -> list[str]:
        """Return what the console says of errors and of what the policy refused, since last."""
        log = self._ask("POST", "/se/log", {"type": "browser"})
        return [it["message"] for it in log if it["level"] != "INFO"]

    def picture(self, path: Path) -> None:
        shot = self.cdp("Page.captureScreenshot", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        if self._session:
            self._ask("DELETE", "")
        self._process.terminate()
        self._process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    it = Browser(tmp_path_factory.mktemp("chromium"))
    yield it
    it.close()


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
    it = Served()
    yield it
    it.web.stop()


def seen(session: str, *, pid: int = 6788, agent: str = "main", **how: Any) -> Seen:
    age: float = how.get("age", 0.0)
    text = {"pid": pid, "createdAt": iso(int((time.time() - age) * 1000)), "maxHoldMs": 1_020_000}
    lock = Lock(
        state_dir=".openclaw",
        agent=agent,
        session=session,
        path=f"/home/node/.openclaw/agents/{agent}/sessions/{session}.jsonl.lock",
        file=FileId(1, 2),
        uid=1000,
        mtime_ms=0,
        ctime_ns=0,
        data=b"",
        record=parse(json.dumps(text).encode()),
    )
    gateway = Holder(state=HolderState.SAME, program=Program.GATEWAY, pid=pid, up_for=18_000.0)
    fields = {"proof": HoldProof.OPEN, "holder": gateway, "file_age": age, **how}
    return judged(Evidence(lock=lock, **fields), at=time.monotonic(), outcome=Outcome.KEPT)


def overdue(session: str = "9f0c3c5e-4b1d-4d0a-8a53-0f6f7c1f9d11", **how: Any) -> Seen:
    return seen(session, **{"age": 2_520.0, **how})


def abandoned() -> Seen:
    ended = int((time.time() - 300) * 1000)
    run = Run(
        trajectory=RunState.ENDED,
        end=RunEnd(at_ms=ended, cut_short=True, started_ms=ended - 900_000),
        store=StoreStatus.ENDED,
        store_started_ms=ended - 900_000,
        store_ended_ms=ended,
        session_key="agent:main:telegram:direct:4711",
        transcript_bytes=40_000,
    )
    session = "2c7be1a0-61f4-4a58-b8a2-51a4de1f3b72"
    return seen(session, age=320.0, run=run, run_end_age=300.0, quiet_for=300.0, seen_for=20.0)


def blind() -> Seen:
    gone = Holder(state=HolderState.GONE)
    how: dict[str, Any] = {"proof": HoldProof.UNAVAILABLE, "proof_note": "no-rights"}
    return seen("d41d8cd9-8f00-4204-a980-0998ecf8427e", age=900.0, holder=gone, **how)


def fill(knowledge: LockInventory, kind: str) -> None:
    """Let it be known what the page is to show."""
    locks = [seen("5b0d7f0a-healthy", age=12.0), seen("0a5c9be4-cron", agent="ops", age=3.4)]
    match kind:
        case "calm":
            pass
        case "stuck":
            locks += [overdue(), abandoned()]
            removed = lock_record(abandoned()._replace(outcome=Outcome.REMOVED))
            dead = seen(
                "77a1e3b0-6c5f-4a0e-9c59-3d1e9cf0aa01",
                pid=6786,
                age=90.0,
                proof=HoldProof.NOT_OPEN,
                holder=Holder(state=HolderState.GONE),
                run=Run(store=StoreStatus.NONE),
            )
            now = int(time.time() * 1000)
            knowledge.remember({**removed, "path": "x", "session": "c0ffee00"}, now - 4_000_000)
            freed = lock_record(dead._replace(outcome=Outcome.REMOVED))
            knowledge.remember(freed, now - 65_000)
            knowledge.remember(lock_record(overdue()._replace(outcome=Outcome.FLAGGED)), now)
        case "all":
            note = "left at '.rprXXXXX': a newer lock has its name"
            failed = abandoned()._replace(outcome=Outcome.FAILED, note=note)
            long = "x" * 180
            locks += [overdue(long, agent="a" * 60), failed, blind()]
            locks += [seen(f"many-{number}", age=200.0 + number) for number in range(60)]
            knowledge.remember(lock_record(failed), int(time.time() * 1000))
            knowledge.remember(lock_record(failed), int(time.time() * 1000))
            gone = Skipped(path=f"/home/{long}", reason="unreadable", failed=True, note="no")
            knowledge.set_skipped([gone])
    for it in locks:
        knowledge.put(it.lock.path, it)


@pytest.mark.parametrize(
    "view", [*itertools.product(["calm", "stuck", "all"], SIZES, ["light", "dark"], HOSTS)]
)
def test_axe_finds_nothing_and_nothing_runs_out_of_the_side(
    browser: Browser, axe: str, served: Served, view: tuple[str, str, str, str]
) -> None:
    """By a stranger's name for this machine too, to whom no session is named."""
    kind, size, scheme, host = view
    fill(served.knowledge, kind)
    browser.show(f"http://{host}:{served.port}/", size=size, scheme=scheme)
    names = browser.run("return [...document.querySelectorAll('h3')].map(it => it.textContent)")
    assert all(it.startswith("A session of agent ") for it in names) is (host != "localhost")
    browser.run(axe + "; window.axe = axe")
    found = browser.run("return axe.run(document, {resultTypes: ['violations', 'incomplete']})")
    assert found["violations"] == []
    # What axe could not decide; each such rule is to be looked at by a person once.
    assert {it["id"] for it in found["incomplete"]} == set()
    assert len(found["passes"]) > 10
    widths = browser.run(
        "return [document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]"
    )
    assert widths[0] <= widths[2] == SIZES[size][0]
    assert widths[1] <= widths[2]
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (scheme == "light")
    assert browser.complaints() == []


def test_the_page_keeps_itself_fresh_and_says_when_it_cannot(
    browser: Browser, served: Served
) -> None:
    fill(served.knowledge, "calm")
    browser.show(f"http://localhost:{served.port}/", size="phone", scheme="light")
    browser.run("window.same = document.querySelector('h1')")

    def headline() -> str:
        text: str = browser.run("return document.querySelector('h1').textContent")
        return text

    assert headline() == "No session is stuck."
    fill(served.knowledge, "all")
    until(lambda: headline().startswith("2 sessions are stuck, the first locked since "))
    assert browser.run("return document.title") == "2 stuck · reaper"
    assert browser.run("return document.querySelectorAll('li').length") > 50
    # The element that a screen reader listens to is still the same one.
    assert browser.run("return window.same === document.querySelector('h1')")
    assert browser.complaints() == []
    assert browser.run("return document.getElementById('lost').hidden")
    served.web.stop()
    until(lambda: not browser.run("return document.getElementById('lost').hidden"))
    lost = browser.run("return document.getElementById('lost').textContent")
    assert lost.startswith("The reaper does not answer since ")
    assert all("ERR_CONNECTION_REFUSED" in it for it in browser.complaints())


def test_hostile_names_run_nothing_in_a_browser(browser: Browser, served: Served) -> None:
    name = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>"
    it = overdue(name, agent="</h3><style>*{display:none}</style>")
    served.knowledge.put(1, it)
    served.knowledge.remember(lock_record(it), 1)
    browser.show(f"http://localhost:{served.port}/", size="desk", scheme="dark")
    assert browser.run("return window.hit === undefined")
    assert name in browser.run("return document.querySelector('h3').textContent")
    assert browser.complaints() == []


@pytest.mark.parametrize("look", [("desk", "light"), ("phone", "dark")])
def test_the_pictures_of_the_documents(
    browser: Browser, served: Served, tmp_path: Path, look: tuple[str, str]
) -> None:
    size, scheme = look
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    fill(served.knowledge, "stuck")
    browser.show(f"http://localhost:{served.port}/", size=size, scheme=scheme)
    path = folder / f"page-{size}-{scheme}.png"
    browser.picture(path)
    assert 5_000 < path.stat().st_size < 200_000
