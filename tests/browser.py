"""Headless Chromium, driven by the W3C's WebDriver protocol through chromedriver."""

import base64
import json
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from tests import needs
from tests.sidecar import port_of, until

SIZES = {"phone": (360, 740), "desk": (1280, 900)}


class Browser:
    """A session of headless Chromium."""

    def __init__(self, folder: Path) -> None:
        for program in ("chromium", "chromedriver"):
            needs.program(program)
        self._process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.DEVNULL)
        self._port: int = until(lambda: port_of(self._process.pid))
        arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        arguments += ["--disable-lcd-text"]  # for small pictures
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

    def show(self, url: str, *, size: str, scheme: str, zone: str = "") -> None:
        """Show the page, in this time zone or the machine's."""
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
        self.cdp("Emulation.setTimezoneOverride", timezoneId=zone)
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """Run the body of a function; wait for a promise that it returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def complaints(self) -> list[str]:
        """Return the errors and policy violations on the console since the last call."""
        log = self._ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] != "INFO"]

    def picture(self, path: Path) -> None:
        shot = self.cdp("Page.captureScreenshot", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        if self._session:
            self._ask("DELETE", "")
        self._process.terminate()
        self._process.wait()
