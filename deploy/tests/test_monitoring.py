"""Rules and dashboard, tested by promtool and by a real Prometheus that scrapes a real reaper."""

import http.server
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DEPLOY, ROOT, load, run, tool
from started import SOON, STAND_IN, State, ask, firing, free_port, process, seen, until

PROMETHEUS = DEPLOY / "prometheus"
RULES = (PROMETHEUS / "alerts.yml", PROMETHEUS / "alerts-sidecar.yml")
RULE_TESTS = (PROMETHEUS / "tests.yml", PROMETHEUS / "tests-timer.yml")
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
CHOSEN = ("namespace", "pod", "instance")
"""The labels that distinguish gateways on the dashboard, beside their state directories."""


# Rules


def alerts() -> dict[str, Any]:
    groups = itertools.chain(*(load(path)["groups"] for path in RULES))
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_promtool_accepts_configurations_and_rules(tmp_path: Path) -> None:
    shutil.copytree(PROMETHEUS, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("prometheus*.yml"):
        # Debian's Prometheus is built without the discovery of Kubernetes.
        text = path.read_text().replace(
            "kubernetes_sd_configs:\n      - role: pod", "file_sd_configs: []"
        )
        path.write_text(text)
        run(tool("promtool"), "check", "config", path)
    for path in RULES:
        run(tool("promtool"), "check", "rules", "--lint=all", "--lint-fatal", path)


def test_each_alert_fires_only_when_it_should() -> None:
    run(tool("promtool"), "test", "rules", *RULE_TESTS)


@pytest.mark.parametrize("broken", ["never", "always", "at once"])
@pytest.mark.parametrize("alert", alerts())
def test_the_rule_tests_notice_an_alert_that_is_wrong(
    alert: str, broken: str, tmp_path: Path
) -> None:
    for path in RULES:
        rules = load(path)
        for rule in rules["groups"][0]["rules"]:
            if rule["alert"] == alert and broken == "at once":
                if "for" not in rule:
                    return
                del rule["for"]
            elif rule["alert"] == alert:
                rule["expr"] = {"never": "vector(0) > 1", "always": "vector(1)"}[broken]
        (tmp_path / path.name).write_text(yaml.safe_dump(rules))
    tests = load(RULE_TESTS[0])
    healthy, *others = tests["tests"]
    tests["tests"] = [healthy, *(test for test in others if alert in str(test))]
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    command = [tool("promtool"), "test", "rules", str(tmp_path / "tests.yml")]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1


def test_each_alert_names_its_instance_and_has_a_section_in_the_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert set(alerts()) <= set(headings)
    for name, rule in alerts().items():
        notes = rule["annotations"]
        assert notes["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert notes["dashboard_url"].startswith(f"/d/{dashboard()['uid']}")
        assert "$labels.instance" in notes["summary"]
        assert rule["labels"]["severity"] in {"warning", "critical"}


# The dashboard


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def test_the_dashboard_is_complete_and_no_panel_covers_another() -> None:
    board = dashboard()
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    used: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (grid["x"] + dx, grid["y"] + dy) for dx in range(grid["w"]) for dy in range(grid["h"])
        }
        assert not used & cells, panel["title"]
        used |= cells
        assert panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
    (source,) = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = load(DEPLOY / "grafana/provisioning/dashboards/reaper.yml")["providers"]
    mounts = load(DEPLOY / "compose" / "compose.yaml")["services"]["grafana"]["volumes"]
    assert any(mount.split(":")[1].startswith(provider["options"]["path"]) for mount in mounts)


def test_each_query_of_the_dashboard_selects_the_chosen_gateways() -> None:
    board = dashboard()
    names = {variable["name"] for variable in board["templating"]["list"]}
    assert names == {"datasource", "state_dir", *CHOSEN}
    for expr in expressions():
        for name, labels in re.findall(r"\b(reaper_\w+|up)(?:\{(.*?)\})?", expr):
            wanted = [f'{label}=~"${label}"' for label in CHOSEN]
            assert [label for label in wanted if label not in labels] == [], (name, expr)


def expressions() -> list[str]:
    """Return all queries of panels and annotations."""
    board = dashboard()
    panels = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [*panels, *(annotation["expr"] for annotation in board["annotations"]["list"])]


def filled(expr: str) -> str:
    """Return a query with everything chosen, as by default in Grafana."""
    fill = dict.fromkeys(("$state_dir", *(f"${variable}" for variable in CHOSEN)), ".*")
    fill |= {"$__rate_interval": "1m", "$__interval": "1m"}
    return re.sub(r"\$\w+", lambda name: fill[name[0]], expr)


WELL = {
    'up{job="openclaw-lock-reaper", instance="a"}': "1x90",
    'reaper_last_sweep_timestamp_seconds{instance="a"}': "0+60x90",
    'reaper_watched_folders{instance="a", state_dir="s"}': "1x90",
    'reaper_locks{instance="a", state_dir="s", verdict="uncertain"}': "0x90",
    'reaper_skipped_files{instance="a", reason="missing"}': "0x90",
}
DOWN = {name: "0x90" if name.startswith("up") else "1 stale _x88" for name in WELL}
STUCK = {
    'reaper_stuck_locks{instance="a", state_dir="s", agent="m"}': "2x90",
    'reaper_blocking_locks{instance="a", state_dir="s", agent="m"}': "1x90",
    'reaper_oldest_stuck_lock_created_timestamp_seconds{instance="a", state_dir="s", agent="m"}': (
        "60x90"
    ),
    'reaper_actions_total{instance="a", action="remove", outcome="removed"}': "0x30 3x60",
    'reaper_locks{instance="a", state_dir="s", verdict="uncertain"}': "4x90",
}
VOID = {'reaper_watched_folders{instance="a", state_dir="s"}': "0x90"}
HUNG = {'reaper_last_sweep_timestamp_seconds{instance="a"}': "0x90"}
UNREAD = {'reaper_skipped_files{instance="a", reason="missing"}': "2x90"}
OF_LOCKS = {
    "Stuck now": 0, "Refusing messages now": 0, "Oldest stuck lock": 0, "Removed in 24 hours": 0,
}  # fmt: skip
UNKNOWN: dict[str, float | None] = dict.fromkeys(OF_LOCKS)


@pytest.mark.parametrize(
    ("series", "shown"),
    [
        ({}, {**UNKNOWN, "Not checked now": None, "Reapers that do not answer": None}),
        (WELL, {**OF_LOCKS, "Not checked now": 0, "Reapers that do not answer": 0}),
        (DOWN, {**UNKNOWN, "Not checked now": None, "Reapers that do not answer": 1}),
        (WELL | VOID, {**UNKNOWN, "Not checked now": 0, "Reapers that do not answer": 0}),
        (WELL | HUNG, {**UNKNOWN, "Not checked now": None, "Last sweep": 3600}),
        (WELL | UNREAD, {**OF_LOCKS, "Not checked now": 2}),
        (
            WELL | STUCK,
            {
                "Stuck now": 2, "Refusing messages now": 1, "Not checked now": 4,
                "Oldest stuck lock": 3540, "Removed in 24 hours": 3, "Last sweep": 0,
            },
        ),
    ],
    ids=["nothing", "well", "down", "void mount", "hung", "unread", "stuck"],
)  # fmt: skip
def test_the_dashboard_shows_no_green_0_while_nothing_is_known(
    series: dict[str, str], shown: dict[str, float | None], tmp_path: Path
) -> None:
    exprs = {panel["title"]: panel["targets"][0]["expr"] for panel in dashboard()["panels"]}
    tests = [
        {
            "expr": f"round({filled(exprs[title])})",
            "eval_time": "60m",
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for title, value in shown.items()
    ]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": inputs, "promql_expr_test": tests}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}))
    run(tool("promtool"), "test", "rules", tmp_path / "tests.yml")


# Both, by a real Prometheus


@contextmanager
def serving(path: Path) -> Iterator[int]:
    """Serve a textfile as node_exporter does; yield the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(path.read_bytes() if path.exists() else b"")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def configure(folder: Path, targets: dict[str, int]) -> None:
    """Copy deploy/prometheus with these targets, a scrape each second, and alerts without `for`."""
    shutil.copytree(PROMETHEUS, folder)
    config = load(folder / "prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"] += load(folder / "prometheus-node_exporter.yml")["scrape_configs"]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for path in RULES:
        rules = load(path)
        for rule in rules["groups"][0]["rules"]:
            rule.pop("for", None)
        (folder / path.name).write_text(yaml.safe_dump(rules))


def test_each_query_of_alerts_and_panels_finds_the_metrics_of_a_reaper(
    state: State, tmp_path: Path, note: Callable[[str], None]
) -> None:
    """A gateway has a healthy, a dead, a stuck and an overdue lock; the overdue one is reported."""
    reaper_port, port = free_port(), free_port()
    textfile = tmp_path / "reaper.prom"
    address = f"http://127.0.0.1:{port}"
    named = ("--state-dir", f"openclaw={state.root}")
    sweep = (tool("reaper"), "sweep", *named, "--textfile", textfile, "--exit-zero", "--wait", "0")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as stack:

        def start(*command: str | Path, **environment: str) -> None:
            kwargs = {"env": {**os.environ, **environment}, **quiet}
            stack.enter_context(process(*command, **kwargs))

        node_port = stack.enter_context(serving(textfile))
        configure(tmp_path / "prometheus", {"openclaw-lock-reaper": reaper_port, "node": node_port})
        gateway = (sys.executable, STAND_IN, "openclaw", "gateway")
        start(*gateway, OPENCLAW_STATE_DIR=str(state.root))
        where = ("--listen", f"127.0.0.1:{reaper_port}", "--wedged-sessions", "9")
        start(tool("reaper"), "watch", *named, *where, *SOON)
        start(
            tool("prometheus"), f"--config.file={tmp_path / 'prometheus' / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
        )  # fmt: skip
        began = time.monotonic()
        until(lambda: ask(address, "up{job='openclaw-lock-reaper'} == 1"), "it is scraped")
        # Counters must be seen to move, so a first lock is removed after they have been scraped.
        state.order("hold-killed", "hold-released", "hold-healthy")
        until(lambda: ask(address, "sum(reaper_locks) == 3"), "three locks are scraped")
        state.order("kill-killed", "release-released", "stuck-stuck")
        until(lambda: state.locks() == {"healthy"}, "the stuck and the dead lock are removed")
        state.order("overdue-late")
        until(lambda: "OpenClawSessionStuck" in firing(address), "the alert fires")
        run(*sweep)
        until(
            lambda: ask(address, 'reaper_stuck_locks{job="node"} == 1'), "the textfile is scraped"
        )
        run(*sweep)
        reported = 'reaper_actions_total{job="node",outcome="flagged"}'
        until(lambda: ask(address, f"{reported} == 2"), "a counter carries on from sweep to sweep")
        everything = [*map(filled, expressions()), *(alert["expr"] for alert in alerts().values())]
        for expr in everything:
            for selector in re.findall(r"\b(?:reaper_\w+|up)(?:\{.*?\})?", expr):
                assert ask(address, selector), f"nothing has {selector}, in {expr}"
        lasted = time.monotonic() - began
        empty = [
            expression
            for expression in map(filled, expressions())
            if not seen(address, expression, seconds=lasted)
        ]
        assert [query for query in empty if query not in TROUBLES] == []
        note(f"{len(everything)} queries of alerts and panels find what they ask for")
        for notes in firing(address).values():
            assert re.search(f"127.0.0.1:({reaper_port}|{node_port})", notes["summary"])
            assert "<" not in str(notes), "a template that could not be filled in"
        state.order("release-late")
        run(*sweep)
        until(lambda: "OpenClawSessionStuck" not in firing(address), "it resolves")


TROUBLES = [
    filled(target["expr"])
    for panel in dashboard()["panels"]
    for target in panel["targets"]
    if panel["title"] == "Problems of the reaper"
]
"""Queries that find nothing when all is well."""
