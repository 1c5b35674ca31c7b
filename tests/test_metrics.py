"""The metrics."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from reaper.core.evidence import Evidence, Holder, HolderState, HoldProof
from reaper.core.finding import Skipped
from reaper.core.lock import FileId, Lock
from reaper.core.policy import Action, Outcome, Policy
from reaper.core.record import parse
from reaper.core.verdict import Judgement, Verdict
from reaper.reports.inventory import LockInventory
from reaper.reports.metrics import Metrics
from reaper.reports.records import TrackedLock
from reaper.web.app import parse_address
from reaper.web.server import Address
from tests.conftest import HoldLock, Tree, judged, record
from tests.needs import program
from tests.processes import reap, start
from tests.sidecar import Sidecar, gone, port_of, until


class Use:
    resident_bytes = 1000
    open_fds: int | None = None


@pytest.fixture
def inventory() -> LockInventory:
    return LockInventory()


def metrics_of(inventory: LockInventory, **kwargs: Any) -> Metrics:
    options: dict[str, Any] = {
        "version": "1",
        "states": ["s"],
        "policy": Policy(),
        "acquire_timeout": 60.0,
        "max_agents": 2,
        "now": lambda: 100.0,
        "holder_use": lambda pid: Use() if pid == 7 else None,
    }
    return Metrics(inventory, **{**options, **kwargs})


def a_lock(agent: str = "main", session: str = "sid", **kwargs: Any) -> TrackedLock:
    lock = Lock(
        state_dir="s",
        agent=agent,
        session=session,
        path=f"/{agent}/{session}",
        file=FileId(1, 2),
        uid=0,
        mtime_ms=5000,
        ctime_ns=5000,
        data=b"",
        record=parse(b'{"pid": 7, "createdAt": "1970-01-01T00:00:09.000Z"}'),
    )
    fields: dict[str, Any] = {
        "proof": HoldProof.OPEN,
        "holder": Holder(state=HolderState.SAME, pid=7),
        "age": 10.0,
        "file_age": 10.0,
    }
    return judged(Evidence(lock=lock, **{**fields, **kwargs}), at=100.0)


def exposed(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def series(metrics: Metrics) -> dict[str, float]:
    lines = exposed(metrics).splitlines()
    parted = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in parted}


def test_a_dead_holder_has_no_series_and_an_agent_without_locks_has_0(
    inventory: LockInventory,
) -> None:
    metrics = metrics_of(inventory)
    inventory.put("place", a_lock())
    assert series(metrics)['reaper_locks{state_dir="s",verdict="held"}'] == 1
    assert series(metrics)['reaper_holder_resident_memory_bytes{pid="7",state_dir="s"}'] == 1000
    inventory.drop("place")
    found = series(metrics)
    assert [name for name in found if "pid=" in name] == []
    left = {name: value for name, value in found.items() if "agent=" in name}
    assert left.pop('reaper_stuck_locks{agent="main",state_dir="s"}') == 0
    assert left.pop('reaper_blocking_locks{agent="main",state_dir="s"}') == 0
    assert left == {}


def test_the_last_state_of_the_hold_proof_stays_known(inventory: LockInventory) -> None:
    metrics = metrics_of(inventory)
    name = 'reaper_hold_proof_available{state_dir="s"}'
    for proof, value in ((HoldProof.UNAVAILABLE, 0), (HoldProof.OPEN, 1)):
        inventory.put("place", a_lock(proof=proof))
        assert series(metrics)[name] == value
        inventory.drop("place")
        assert series(metrics)[name] == value


def test_each_reason_for_a_skipped_file_is_counted_and_never_absent(
    inventory: LockInventory,
) -> None:
    metrics = metrics_of(inventory)

    def skipped() -> dict[str, float]:
        found = series(metrics).items()
        return {
            name.split('"')[1]: value for name, value in found if "reaper_skipped_files{" in name
        }

    assert skipped() == {}  # before the first sweep
    inventory.set_skipped([])
    known = skipped()
    assert set(known.values()) == {0}
    for reason in known:
        inventory.set_skipped([Skipped(path="/x", reason=reason, failed=True)])
        assert skipped() == {**known, reason: 1}
    odd = [Skipped(path="/x", reason=f"error-{code}", failed=True) for code in ("EIO", "EMFILE")]
    inventory.set_skipped(odd)
    assert skipped() == {**known, "error": 2}
    inventory.set_skipped([Skipped(path="/x", reason="sqlite-sessions")])
    assert skipped() == known


def test_an_alert_is_tested_for_every_reason(inventory: LockInventory) -> None:
    inventory.set_skipped([])
    known = re.findall(r'reaper_skipped_files{reason="([^"]+)"}', exposed(metrics_of(inventory)))
    tests = (Path(__file__).parents[1] / "deploy" / "prometheus" / "tests.yml").read_text()
    tested = re.findall(r'reaper_skipped_files{[^}]*reason="([^"]+)"}', tests)
    assert set(tested) == set(known)


def test_agents_beyond_the_cap_are_counted_as_other(inventory: LockInventory) -> None:
    metrics = metrics_of(inventory)
    for number in range(5):
        inventory.put(number, a_lock(f"agent{number}", age=99.0))
    found = series(metrics)
    assert found['reaper_blocking_locks{agent="other",state_dir="s"}'] == 3
    assert {re.findall('agent="([^"]*)"', name)[0] for name in found if "agent=" in name} == {
        "agent0",
        "agent1",
        "other",
    }
    inventory.drop(0)
    assert 'reaper_blocking_locks{agent="agent2",state_dir="s"}' in series(metrics)


def test_no_label_carries_a_session_or_a_hostile_name(inventory: LockInventory) -> None:
    metrics = metrics_of(inventory)
    inventory.put(1, a_lock('a"\n\x00' + os.fsdecode(b"\xff") + "x" * 500, session="secret"))
    text = generate_latest(metrics.registry).decode()
    assert "secret" not in text
    assert "\x00" not in text
    assert max(len(label) for label in re.findall('agent="([^ ]*)"', text)) < 100


def test_a_lock_blocks_after_the_acquire_timeout(inventory: LockInventory) -> None:
    now = [100.0]
    metrics = metrics_of(inventory, now=lambda: now[0])
    inventory.put(1, a_lock(age=10.0))
    name = 'reaper_blocking_locks{agent="main",state_dir="s"}'
    assert series(metrics)[name] == 0
    now[0] += 50.1  # the age of a lock grows without another look
    assert series(metrics)[name] == 1
    oldest = 'reaper_oldest_lock_created_timestamp_seconds{agent="main",state_dir="s"}'
    assert series(metrics)[oldest] == 9.0


def test_the_oldest_stuck_lock_is_not_the_oldest_lock(inventory: LockInventory) -> None:
    metrics = metrics_of(inventory)
    name = 'reaper_oldest_stuck_lock_created_timestamp_seconds{agent="main",state_dir="s"}'
    inventory.put("held", a_lock())
    assert name not in series(metrics)
    later = parse(b'{"pid": 8, "createdAt": "1970-01-01T00:00:20.000Z"}')
    stuck = a_lock(proof=HoldProof.NOT_OPEN, holder=Holder(state=HolderState.GONE))
    inventory.put("stuck", stuck._replace(lock=stuck.lock._replace(record=later)))
    found = series(metrics)
    assert found[name] == 20
    assert found[name.replace("_stuck", "")] == 9
    inventory.drop("stuck")
    assert name not in series(metrics)


def test_the_build_and_the_policy_are_labels(inventory: LockInventory) -> None:
    text = exposed(metrics_of(inventory, version="1.2", revision="abc"))
    python = platform.python_version()
    assert f'reaper_build_info{{python="{python}",revision="abc",version="1.2"}} 1.0' in text
    options = {
        "policy": Policy(on_overdue=Action.REMOVE, on_abandoned=Action.FLAG),
        "dry_run": True,
    }
    text = exposed(metrics_of(inventory, **options))
    policy = re.findall(r'reaper_policy_info{action="(.*)",verdict="(.*)"}', text)
    assert {verdict: action for action, verdict in policy} == {
        "held": "keep",
        "uncertain": "keep",
        "stale": "would-remove",
        "orphaned": "would-remove",
        "abandoned": "flag",
        "overdue": "would-remove",
    }


def test_a_sweep_of_five_minutes_has_a_bucket(inventory: LockInventory) -> None:
    assert 'reaper_sweep_duration_seconds_bucket{le="300.0"}' in series(metrics_of(inventory))


def test_a_lock_that_cannot_be_probed_does_not_count_as_stuck(inventory: LockInventory) -> None:
    metrics = metrics_of(inventory)
    unprobed = a_lock(
        proof=HoldProof.UNAVAILABLE,
        proof_note="file-system",
        holder=Holder(state=HolderState.GONE),
    )
    inventory.put(1, unprobed)
    found = series(metrics)
    assert found['reaper_stuck_locks{agent="main",state_dir="s"}'] == 0
    assert found['reaper_hold_proof_available{state_dir="s"}'] == 0


def test_an_unknown_hold_proof_has_no_series(inventory: LockInventory) -> None:
    metrics = metrics_of(inventory)
    young = a_lock(
        proof=HoldProof.UNAVAILABLE,
        proof_note="too-early",
        holder=Holder(state=HolderState.UNNAMED),
    )
    for known in (None, young):
        if known:
            inventory.put(1, known)
        found = series(metrics)
        assert not [name for name in found if "hold_proof_available" in name]


def test_locks_by_verdict_have_series_after_the_first_sweep(inventory: LockInventory) -> None:
    metrics = metrics_of(inventory)
    assert "reaper_locks{" not in exposed(metrics)
    inventory.set_skipped([])
    found = series(metrics)
    for verdict in Verdict:
        assert found[f'reaper_locks{{state_dir="s",verdict="{verdict.value}"}}'] == 0


def action_series(metrics: Metrics) -> set[tuple[str, ...]]:
    """Return action, outcome and reason of each series that counts actions; all are 0."""
    found = {name: value for name, value in series(metrics).items() if "actions_total" in name}
    assert set(found.values()) == {0}
    return {tuple(re.findall('"([^"]*)"', name)) for name in found}


REMOVALS = ("removed", "vanished", "changed", "restored", "failed")


@pytest.mark.parametrize(
    ("options", "outcomes_of_stale", "flagged"),
    [
        ({}, REMOVALS, {"hold-exceeded"}),
        ({"dry_run": True}, ("would-remove",), {"hold-exceeded"}),
        ({"policy": Policy(on_overdue=Action.REMOVE)}, REMOVALS, set()),
        ({"policy": Policy(on_abandoned=Action.FLAG)}, REMOVALS, {"hold-exceeded", "run-ended"}),
    ],
)
def test_actions_that_the_policy_allows_are_counted_from_0_and_no_others(
    inventory: LockInventory,
    options: dict[str, Any],
    outcomes_of_stale: tuple[str, ...],
    flagged: set[str],
) -> None:
    found = action_series(metrics_of(inventory, **options))
    assert {outcome for _, outcome, reason in found if reason == "dead-pid"} == set(
        outcomes_of_stale
    )
    assert {reason for action, _, reason in found if action == "flag"} == flagged
    for action, outcome, reason in found:
        assert (action == "flag") == (outcome == "flagged") == (reason in flagged)


def test_counters_that_alerts_read_start_at_0(inventory: LockInventory) -> None:
    found = series(metrics_of(inventory))
    assert found['reaper_errors_total{kind="removal"}'] == 0


def test_an_abandoned_lock_that_was_removed_is_a_leaked_session(inventory: LockInventory) -> None:
    metrics = metrics_of(inventory)
    leaked = 'reaper_leaked_sessions_total{state_dir="s"}'
    assert series(metrics)[leaked] == 0
    abandoned = Judgement(verdict=Verdict.ABANDONED, reasons=("run-ended",), row=1)
    for outcome in (Outcome.FAILED, Outcome.FLAGGED, Outcome.REMOVED):
        metrics.count_action(
            a_lock()._replace(judgement=abandoned, action=Action.REMOVE, outcome=outcome)
        )
    stale = a_lock(proof=HoldProof.NOT_OPEN, holder=Holder(state=HolderState.GONE))
    metrics.count_action(stale._replace(action=Action.REMOVE, outcome=Outcome.REMOVED))
    assert series(metrics)[leaked] == 1
    assert leaked in series(metrics_of(inventory, watching=False))


def test_the_sidecar_has_process_metrics_and_a_textfile_has_none(inventory: LockInventory) -> None:
    assert series(metrics_of(inventory))["process_resident_memory_bytes"] > 0
    assert "process_" not in exposed(metrics_of(inventory, watching=False))


def test_a_sweep_has_no_metrics_that_need_a_sidecar(inventory: LockInventory) -> None:
    text = exposed(metrics_of(inventory, watching=False))
    assert not re.findall("reaper_(?:lock_hold|reap_delay|events|observer)", text)


def test_a_failed_removal_is_an_error_too(inventory: LockInventory) -> None:
    metrics = metrics_of(inventory)
    stale = a_lock(proof=HoldProof.NOT_OPEN, holder=Holder(state=HolderState.UNNAMED), file_age=99)
    metrics.count_action(stale._replace(action=Action.REMOVE, outcome=Outcome.FAILED))
    metrics.count_action(stale._replace(action=Action.KEEP, outcome=Outcome.KEPT))
    found = series(metrics)
    assert found['reaper_errors_total{kind="removal"}'] == 1
    assert sum(value for name, value in found.items() if "actions" in name) == 1


def test_each_metric_is_documented_and_each_documented_metric_exists(
    inventory: LockInventory,
) -> None:
    inventory.put(1, a_lock())
    Use.open_fds = 5
    inventory.set_skipped([Skipped(path="/x", reason="symlink", failed=True)])
    text = generate_latest(metrics_of(inventory).registry).decode()
    exposed_names = set(re.findall(r"^# TYPE (reaper_\S+)", text, re.MULTILINE))
    document = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    assert exposed_names == set(re.findall(r"^\| `(\w+)", document, re.MULTILINE))


def promtool(text: str) -> str:
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_promtool_accepts_the_metrics(inventory: LockInventory) -> None:
    inventory.put(1, a_lock())
    inventory.set_skipped([Skipped(path="/x", reason="symlink", failed=True)])
    assert promtool(generate_latest(metrics_of(inventory).registry).decode()) == ""


def test_a_sweep_writes_the_same_metrics_to_a_text_file(tree: Tree, tmp_path: Path) -> None:
    tree.lock("dead", record(2**22 + 1))
    target = tmp_path / "reaper.prom"

    def sweep(*options: str) -> subprocess.CompletedProcess[str]:
        return reap("sweep", "--state-dir", tree.root, *options)

    assert sweep("--dry-run", "--textfile", str(target)).returncode == 3
    text = target.read_text()
    assert 'reaper_stuck_locks{agent="main",state_dir="state"} 1.0' in text
    assert "reaper_observer_up" not in text
    assert promtool(text) == ""
    assert sweep("--textfile", str(target)).returncode == 0
    text = target.read_text()
    assert 'action="remove",outcome="removed",reason="dead-pid"} 1.0' in text
    assert "reaper_stuck_locks{" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reaper.prom", "state"]
    done = sweep("--textfile", str(tmp_path / "nowhere" / "x.prom"))
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9789", Address("127.0.0.1", 9789)),
        (":9789", Address("", 9789)),
        ("[::1]:0", Address("::1", 0)),
        ("localhost:80", Address("localhost", 80)),
    ],
)
def test_addresses_are_parsed_to_host_and_port(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "9789", "::1:9789", "h:x", "h:", "h:65536", "h:-1", "h:²"])
def test_a_wrong_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_address(text)


# A real Prometheus


@pytest.fixture
def prometheus(tmp_path: Path) -> Any:
    """Return a function that starts a Prometheus, which scrapes one target each second."""
    command = program("prometheus")

    def scraping(target: str) -> Any:
        configuration = tmp_path / "prometheus.yml"
        configuration.write_text(
            "global: {scrape_interval: 1s}\n"
            "scrape_configs:\n- job_name: reaper\n  static_configs:\n"
            f"  - targets: ['{target}']\n"
        )
        process = start(
            [
                command,
                f"--config.file={configuration}",
                f"--storage.tsdb.path={tmp_path}/tsdb",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = until(lambda: port_of(process.pid), "a Prometheus that listens")

        def query(expression: str) -> list[dict[str, Any]]:
            import json
            import urllib.parse
            import urllib.request

            url = f"http://127.0.0.1:{port}/api/v1/query?"
            url += urllib.parse.urlencode({"query": expression})
            try:
                with urllib.request.urlopen(url) as answer:
                    found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
                    return found
            except OSError:
                return []

        until(lambda: query("up == 1"), "a target that is up")
        return query

    return scraping


@pytest.mark.long(seconds=6)
def test_a_real_prometheus_scrapes_the_sidecar(tree: Tree, hold: HoldLock, prometheus: Any) -> None:
    tree.lock("cut", record(2**22 + 1, starttime=5))
    tree.store({"k": {"sessionId": "cut", "status": "running"}})
    hold("healthy")
    dying = hold("dying")
    sidecar = Sidecar(tree.root)
    until(lambda: sidecar.metric("reaper_locks", verdict="held") == 2)
    dying.kill()
    until(gone(dying.path))
    query = prometheus(f"127.0.0.1:{sidecar.port}")
    (held,) = until(lambda: query('reaper_locks{verdict="held"} == 1'))
    assert held["metric"]["state_dir"] == "state"
    assert until(lambda: query('reaper_actions_total{outcome="removed"} == 1'))
    assert query("time() - reaper_last_sweep_timestamp_seconds < 600")
    assert query("histogram_quantile(0.5, reaper_reap_delay_seconds_bucket)")
    assert not query("reaper_stuck_locks > 0")
    assert not query("reaper_hold_proof_available != 1")
    names = {series["metric"]["__name__"] for series in query('{__name__=~"reaper_.*"}')}
    assert len(names) > 20
