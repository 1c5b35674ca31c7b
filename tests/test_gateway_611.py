"""A real gateway of the release that buffers its trajectory. During a healthy run the file ends
with the end of an earlier run, so it proves nothing about the lock.
"""

import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import StartGateway
from tests.gateway import eventually
from tests.model_provider import Provider, Step
from tests.openclaw_package import OpenClaw
from tests.test_gateway import (
    RUN_TIMEOUT,
    SHORT,
    begin_in_tool,
    cut_short_in_a_tool,
    keeps,
    look,
    transcript_is_intact,
    watching,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tests.gateway import Gateway

pytestmark = pytest.mark.gateway611

_ELSEWHERE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def is_kept(gateway: "Gateway", session: str, waiting: "Future[Any]", go: threading.Event) -> None:
    """Run a sidecar here and one in another PID namespace beside a lock of a healthy run."""
    with (
        watching(gateway, limits=SHORT) as near,
        watching(gateway, limits=SHORT, wrap=_ELSEWHERE) as far,
    ):
        keeps(gateway, session, near)
        for wrap in ((), _ELSEWHERE):
            lock = look(gateway, "--abandoned-after", "2s", wrap=wrap)[session]
            assert (lock["verdict"], lock["hold_proof"]) == ("held", "open")
        assert near.journal("removed") == far.journal("removed") == []
    go.set()
    assert waiting.result()["status"] == "ok"
    assert transcript_is_intact(gateway.sessions() / f"{session}.jsonl")


@pytest.mark.root
def test_a_run_that_was_queued_behind_a_run_that_timed_out_in_its_tool_keeps_its_lock(
    gateways: StartGateway, later: OpenClaw, provider: Provider, root_only: None
) -> None:
    gateway = gateways(later)
    go = threading.Event()
    queued = provider.part("queued", Step(until=go))
    try:
        begin_in_tool(gateway, "sid", RUN_TIMEOUT)
        waiting = gateway.run("sid", queued.cue)
        eventually(lambda: queued.open, "the queued run has the lock")
        assert cut_short_in_a_tool(gateway, "sid")
        is_kept(gateway, "sid", waiting, go)
    finally:
        go.set()


@pytest.mark.root
def test_the_first_run_after_an_upgrade_keeps_its_lock(
    gateways: StartGateway, later: OpenClaw, provider: Provider, root_only: None
) -> None:
    before = gateways()
    begin_in_tool(before, "sid", RUN_TIMEOUT)
    eventually(lambda: cut_short_in_a_tool(before, "sid"), "a run that timed out in its tool")
    before.stop()
    gateway = gateways(later, root=before.root)
    go = threading.Event()
    slow = provider.part("slow", Step(until=go))
    try:
        waiting = gateway.run("sid", slow.cue)
        eventually(lambda: slow.open, "the run has the lock")
        # The older gateway wrote the whole file.
        assert cut_short_in_a_tool(gateway, "sid")
        versions = [
            record["data"]["harness"]["version"]
            for record in gateway.trajectory("sid")
            if record["type"] == "trace.metadata"
        ]
        assert versions == ["2026.5.22"]
        is_kept(gateway, "sid", waiting, go)
    finally:
        go.set()
