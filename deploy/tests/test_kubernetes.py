"""deploy/kubernetes, built by kubectl and checked against the schemas, without a cluster."""

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DEPLOY, KUBECTL, load, node, run, tool
from test_monitoring import RULES

from tests.needs import not_tested

KUBERNETES = DEPLOY / "kubernetes"
BUILT = ("base", "overlays/production", "daemonset")
ADDED = ("flag-only",)
"""Components that no folder of BUILT uses."""


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
        layer = load(folder / "kustomization.yaml")
        patches = [patch["path"] for patch in layer.get("patches", ()) if "path" in patch]
        names = [*layer.get("resources", ()), *layer.get("components", ()), *patches]
        waiting += [(folder / name).resolve() for name in names]
    return files


def kustomize(folder: str) -> str:
    if not KUBECTL.exists():
        not_tested("kubectl", cure="make .venv/.deploy")
    return run(KUBECTL, "kustomize", KUBERNETES / folder).stdout


def objects(folder: str) -> list[Any]:
    return list(yaml.safe_load_all(kustomize(folder)))


def pod_specs(folder: str) -> Iterator[Any]:
    for each in objects(folder):
        if each["kind"] in {"Deployment", "DaemonSet"}:
            yield each["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("folder", BUILT)
def test_kustomize_builds_valid_objects(folder: str, version: str, tmp_path: Path) -> None:
    """Native sidecars need no feature gate from 1.29 on."""
    built = tmp_path / "built.yaml"
    core = [each for each in objects(folder) if "monitoring.coreos.com" not in each["apiVersion"]]
    built.write_text(yaml.safe_dump_all(core))
    done = run(tool("kubernetes-validate"), "--strict", "-k", version, built)
    assert "WARN" not in done.stdout + done.stderr


@pytest.mark.parametrize("component", ADDED)
def test_a_component_that_no_example_has_changes_the_sidecar(
    component: str, tmp_path: Path
) -> None:
    base = os.path.relpath(KUBERNETES, tmp_path)
    layer = {"resources": [f"{base}/base"], "components": [f"{base}/components/{component}"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(layer))
    (spec,) = pod_specs(os.path.relpath(tmp_path, KUBERNETES))
    (reaper,) = spec["initContainers"]
    assert {"name": "REAPER_DRY_RUN", "value": "true"} in reaper["env"]


RECOMMENDED = {"name", "component", "part-of", "managed-by", "version"}


@pytest.mark.parametrize("folder", BUILT)
def test_workloads_have_the_recommended_labels_with_their_version(folder: str) -> None:
    for each in objects(folder):
        if each["kind"] in {"Deployment", "DaemonSet"}:
            template = each["spec"]["template"]
            (image,) = {container["image"] for container in template["spec"]["containers"]}
            for labels in (each["metadata"]["labels"], template["metadata"]["labels"]):
                assert {f"app.kubernetes.io/{name}" for name in RECOMMENDED} <= set(labels)
                assert image.endswith(f":{labels['app.kubernetes.io/version']}")


@pytest.mark.parametrize("folder", ["overlays/production", "daemonset"])
def test_the_objects_for_the_operator_fit_its_schemas(folder: str) -> None:
    script = """
    import("@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1").then(models => {
      for (const each of JSON.parse(process.argv[1])) new models[each.kind](each).validate();
    });
    """
    own = [each for each in objects(folder) if "monitoring.coreos.com" in each["apiVersion"]]
    assert {each["kind"] for each in own} == {"PodMonitor", "PrometheusRule"}
    assert all(each["metadata"]["labels"]["release"] for each in own)
    node(script, json.dumps(own))
    broken = [{**each, "spec": {"groups": 1, "selector": 1}} for each in own]
    with pytest.raises(AssertionError):
        node(script, json.dumps(broken))


def test_the_rules_for_the_operator_are_those_of_prometheus() -> None:
    files = [load(path) for path in RULES]
    rule = load(KUBERNETES / "components" / "monitoring" / "prometheus-rule.yaml")
    assert rule["spec"]["groups"] == [group for file in files for group in file["groups"]]


@pytest.mark.parametrize("folder", BUILT)
def test_pods_meet_the_restricted_pod_security_standard(folder: str) -> None:
    """Checked by the text of the standard, without a cluster. The namespace of the DaemonSet allows
    its two exceptions.
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
    levels = [each["metadata"]["labels"] for each in objects(folder) if each["kind"] == "Namespace"]
    expected = "privileged" if folder == "daemonset" else "restricted"
    assert all(level["pod-security.kubernetes.io/enforce"] == expected for level in levels)


def test_the_sidecar_is_native_and_does_not_block_the_gateway() -> None:
    for folder in ("base", "overlays/production"):
        (spec,) = pod_specs(folder)
        (reaper,) = spec["initContainers"]
        assert reaper["restartPolicy"] == "Always"
        assert "startupProbe" not in reaper
        assert "readinessProbe" not in reaper
        (state,) = [mount["name"] for mount in reaper["volumeMounts"]]
        assert state in [mount["name"] for mount in spec["containers"][0]["volumeMounts"]]
        assert spec.get("shareProcessNamespace", False) is (folder == "overlays/production")


@contextmanager
def answering(status: int | None) -> Iterator[int]:
    """Answer each request with a status, or never; yield the port."""
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
    """Run the probe's own command. A missing, broken or stuck reaper restarts no gateway."""
    (spec,) = pod_specs("overlays/production")
    program, *arguments = spec["containers"][0]["livenessProbe"]["exec"]["command"]
    assert program == "node"
    with answering(status) as port:
        command = [tool("node"), *(argument.replace(":9789", f":{port}") for argument in arguments)]
        assert (subprocess.run(command, timeout=60).returncode == 1) is restarts
    assert subprocess.run(command, timeout=60).returncode == 0, "nobody listens"
