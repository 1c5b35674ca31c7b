"""Trajectory records in the shape of real ones (2026.5.22), for tests."""

import json
from typing import Any

from reaper.core.lock import iso

GATEWAY = ["/usr/bin/node", "/app/openclaw.mjs", "gateway", "run", "--port", "18789"]


def attempt(
    run: str,
    began_ms: int,
    ended_ms: int,
    *,
    cut_short: bool = True,
    late: bool = False,
    version: object = "2026.5.22",
    invocation: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Return the records of one attempt, by default of a gateway's run that timed out in its tool;
    with `late` also those of the model's answer, as if the tool outlived the time-out.
    """
    harness = {
        "type": "openclaw",
        "name": "OpenClaw",
        "version": version,
        "gitSha": "a374c3a",
        "invocation": GATEWAY if invocation is None else invocation,
    }
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("session.started", {"trigger": "user", "agentId": "main", "toolCount": 20}),
        ("trace.metadata", {"harness": harness}),
        ("context.compiled", {"systemPrompt": "x" * 200}),
        ("prompt.submitted", {"prompt": "go"}),
    ]
    if late:
        kinds += [("model.completed", {"timedOut": True}), ("trace.artifacts", {})]
    records = [
        _record(kind, run, number, began_ms + number - 1, data)
        for number, (kind, data) in enumerate(kinds, start=1)
    ]
    flags = dict.fromkeys(("aborted", "timedOut", "timedOutDuringToolExecution"), cut_short)
    return [*records, session_ended(run, len(records) + 1, ended_ms, flags)]


def session_ended(run: str, number: int, at_ms: int, flags: dict[str, bool]) -> dict[str, Any]:
    data = {"status": "error", "externalAbort": False, "idleTimedOut": False, **flags}
    return _record("session.ended", run, number, at_ms, data)


def step(run: str, number: int, outcome: str) -> dict[str, Any]:
    """Return the record of a run's outer loop about its fallback models."""
    data = {"fallbackStepType": "fallback_step", "fallbackStepFinalOutcome": outcome}
    return _record("model.fallback_step", run, number, 1_779_758_460_000, data)


def _record(kind: str, run: str, number: int, at_ms: int, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "traceSchema": "openclaw-trajectory",
        "schemaVersion": 1,
        "source": "runtime",
        "type": kind,
        "ts": iso(at_ms),
        "seq": number,
        "sourceSeq": number,
        "sessionId": "sid",
        "sessionKey": "agent:main:main",
        "runId": run,
        "data": data,
    }


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)
