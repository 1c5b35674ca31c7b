"""The image, Compose and systemd of deploy/, started for real. Slow; needs root.

They need no Docker engine, image registry, Kubernetes or Grafana. The base image has Debian's
Python instead of python:slim, stand_in.py replaces the gateway, and Prometheus is Debian's.
"""

import json
import os
import resource
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import DEPLOY, ROOT, run, tool
from started import SOON, STAND_IN, State, ask, free_port, get, process, until

from tests.needs import not_tested

Note = Callable[[str], None]
BASE = "localhost/reaper-test-base:trixie"
DISTRIBUTION = "trixie"
CA = Path("/etc/ssl/certs/ca-certificates.crt")
PIP = Path("/etc/pip.conf")
BUILD_ARGS = (
    "--build-arg", "VERSION=test", "--build-arg", "PROJECT_URL=https://example.org/r",
)  # fmt: skip
HARDENED = (
    "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--memory=160m",
)  # fmt: skip


def metric(port: int, name: str) -> float | None:
    lines = (line.rsplit(" ", 1) for line in get(f"http://127.0.0.1:{port}/metrics").splitlines())
    return {series: float(value) for series, value in lines if series == name}.get(name)


def removed_for(port: int) -> set[str]:
    """Return the first reason of each removal so far."""
    lines = get(f"http://127.0.0.1:{port}/metrics").splitlines()
    removals = [line for line in lines if 'action="remove",outcome="removed"' in line]
    return {
        removal.split('reason="')[1].split('"')[0]
        for removal in removals
        if not removal.endswith(" 0.0")
    }


class Podman:
    """Podman with limits and a runtime that work on this machine."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            not_tested("podman and debootstrap", cure="run as root")
        self.program, self._folder = tool("podman"), folder
        conf = folder / "containers.conf"
        conf.write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]\n'
            f'[engine]\nruntime = "{Path(tool("runc")).name}"\n'
        )
        self.environment = {**os.environ, "CONTAINERS_CONF": str(conf)}

    def __call__(self, *command: str | Path, **kwargs: Any) -> str:
        done = run(self.program, *command, env=self.environment, **{"timeout": 600, **kwargs})
        return done.stdout.strip()

    def build(self, tag: str, *options: str | Path) -> None:
        """Build with this machine's certificates and pip settings mounted, not copied."""
        lent = [f"--volume={path}:{path}:ro" for path in (CA, PIP) if path.exists()]
        self(
            "build",
            "--network=host",
            "--format=docker",
            "--timestamp=0",
            *lent,
            "-t",
            tag,
            *options,
        )

    def containerfile(self, tag: str, text: str, **files: Path) -> None:
        context = self._folder / uuid.uuid4().hex
        context.mkdir()
        (context / "Containerfile").write_text(text)
        for name, path in files.items():
            shutil.copy(path, context / name)
        self.build(tag, context)

    @contextmanager
    def container(self, *command: str | Path) -> Iterator[str]:
        name = f"reaper-test-{uuid.uuid4().hex[:8]}"
        try:
            self("run", "--detach", f"--name={name}", *command)
            yield name
        finally:
            subprocess.run(
                [self.program, "rm", "--force", "--time=0", name],
                env=self.environment, capture_output=True, timeout=60,
            )  # fmt: skip


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    return Podman(tmp_path_factory.mktemp("podman"))


@pytest.fixture(scope="module")
def base(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an image with Debian's Python instead of python:slim, built once per machine."""
    command = [podman.program, "image", "exists", BASE]
    if subprocess.run(command, env=podman.environment, timeout=60).returncode:
        root = tmp_path_factory.mktemp("base") / "root"
        packages = "--include=python3,python3-venv,ca-certificates"
        run(tool("debootstrap"), "--variant=minbase", packages, DISTRIBUTION, root, timeout=1200)
        for name in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(root / name)
        archive = root.with_suffix(".tar")
        run("tar", "-C", root, "--one-file-system", "-cf", archive, ".")
        podman("import", archive, BASE)
        archive.unlink()
        shutil.rmtree(root)
    return BASE


@pytest.fixture(scope="module")
def image(podman: Podman, base: str) -> str:
    tag = "localhost/openclaw-lock-reaper:test"
    podman.build(tag, "--build-arg", f"BASE={base}", *BUILD_ARGS, ROOT)
    return tag


@pytest.fixture(scope="module")
def gateway_image(podman: Podman, image: str) -> str:
    tag = "localhost/reaper-test-gateway"
    text = (
        f"FROM {image}\nUSER root\nRUN install -d -o 1000 -g 1000 /home/node/.openclaw\n"
        "COPY stand_in.py /stand_in.py\nUSER 1000:1000\n"
        'HEALTHCHECK NONE\nENTRYPOINT ["python3", "/stand_in.py", "openclaw", "gateway"]\nCMD []\n'
    )
    podman.containerfile(tag, text, **{"stand_in.py": STAND_IN})
    return tag


# The image


def test_the_image_is_small_and_holds_nothing_it_does_not_need(
    podman: Podman, base: str, image: str, note: Note
) -> None:
    built = json.loads(podman("image", "inspect", image))[0]
    below = json.loads(podman("image", "inspect", base))[0]
    config = built["Config"]
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["reaper"]
    assert config["Cmd"] == ["watch"]
    assert built["Healthcheck"]["Test"] == ["CMD", "reaper", "probe"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in config["Labels"].items()
    }
    assert labels["version"] == "test"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["source"] == labels["url"] == "https://example.org/r"
    assert labels["documentation"] == "https://example.org/r/blob/test/docs/README.md"
    own = built["Size"] - below["Size"]
    sizes = podman(
        "run", "--rm", "--entrypoint=sh", image, "-c", "du -sk /opt/reaper/lib/*/site-packages/*"
    )
    parts = sorted(((int(kb), Path(path).name) for kb, path in map(str.split, sizes.splitlines())))
    largest = ", ".join(f"{name} {size / 1024:.1f}" for size, name in parts[:-7:-1])
    note(f"{built['Size'] / 1e6:.0f} MB unpacked, {own / 1e6:.0f} MB of them ours: {largest} MiB")
    assert own < 40e6
    search = "command -v cc gcc g++ as ld make pip pip3 uv; ls /opt/reaper/bin"
    found = podman("run", "--rm", "--entrypoint=sh", image, "-c", search).split()
    assert "reaper" in found
    assert [line for line in found if line.startswith(("/", "pip"))] == []
    for name in ("pip", "tests", "hatchling"):
        assert name not in [part for _, part in parts]


def test_two_builds_give_the_same_layers(podman: Podman, base: str, image: str, note: Note) -> None:
    """The ids differ, because podman records in the history what came from its cache."""
    again = "localhost/openclaw-lock-reaper:again"
    options = ("--no-cache", "--build-arg", f"BASE={base}", *BUILD_ARGS)
    podman.build(again, *options, ROOT)
    layers = ("image", "inspect", "--format={{.RootFS.Layers}}")
    assert podman(*layers, again) == podman(*layers, image)
    note("the same layers by content, from the same base and without the cache")


@pytest.mark.parametrize("shared", [False, True])
def test_the_sidecar_removes_stuck_locks_of_a_gateway_in_another_container(
    podman: Podman, image: str, gateway_image: str, state: State, note: Note, shared: bool
) -> None:
    """It has a read-only root, no capabilities, no new privileges, and the gateway's uid."""
    port = free_port()
    with ExitStack() as stack:
        gateway = stack.enter_context(
            podman.container(
                "--volume", f"{state.root}:/home/node/.openclaw",
                "--env=OPENCLAW_STATE_DIR=/home/node/.openclaw", gateway_image,
            )
        )  # fmt: skip
        state.order("hold-healthy", "hold-killed", "stuck-stuck")
        assert state.locks() == {"healthy", "killed", "stuck"}
        reaper = stack.enter_context(
            podman.container(
                *HARDENED, *([f"--pid=container:{gateway}"] if shared else []),
                f"--publish=127.0.0.1:{port}:9789", "--volume", f"{state.root}:/state",
                image, "watch", *SOON,
            )
        )  # fmt: skip
        held = 'reaper_locks{state_dir="openclaw",verdict="held"}'
        until(lambda: metric(port, held), "the sidecar sees held locks")
        until(lambda: "stuck" not in state.locks(), "the abandoned lock is removed")
        state.order("kill-killed")
        began = time.monotonic()
        until(lambda: "killed" not in state.locks(), "the killed holder's lock is removed")
        seconds = time.monotonic() - began
        reasons = removed_for(port) - {"run-ended"}
        note(f"a killed holder's lock went after {seconds:.1f} s, as {', '.join(reasons)}")
        assert state.locks() == {"healthy"}
        assert metric(port, 'reaper_hold_proof_available{state_dir="openclaw"}') == 1
        memory = get(f"http://127.0.0.1:{port}/metrics").count(
            "reaper_holder_resident_memory_bytes{"
        )
        assert memory == (1 if shared else 0)
        assert podman("exec", reaper, "reaper", "probe").startswith("200")
        podman("healthcheck", "run", reaper)
        status = podman("exec", reaper, "cat", "/proc/self/status")
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        podman("kill", gateway)
        if shared:
            code = podman("wait", reaper)
            assert code == "137"
            note("a shared PID namespace dies with its first process, and the sidecar with it: 137")
        else:
            until(lambda: not state.locks(), "the killed gateway's lock is removed")
            assert podman("inspect", "--format={{.State.Running}}", reaper) == "true"
            note("the gateway is killed: its lock is removed, and the sidecar lives")


def test_a_new_volume_belongs_to_the_gateway_no_matter_which_container_mounts_it_first(
    podman: Podman, image: str
) -> None:
    volume = f"reaper-test-{uuid.uuid4().hex[:8]}"
    try:
        command = ("run", "--rm", "--volume", f"{volume}:/state", "--entrypoint=stat", image)
        assert podman(*command, "-c", "%u:%g", "/state") == "1000:1000"
    finally:
        podman("volume", "rm", "--force", volume)


# Compose


def test_compose_starts_gateway_reaper_and_prometheus(
    podman: Podman, image: str, gateway_image: str, base: str, note: Note
) -> None:
    """All but Grafana, which is not available. The removal works on Compose's own volume."""
    prometheus = "localhost/reaper-test-prometheus"
    install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus"
    text = (
        f"FROM {base}\nRUN {install} && install -d -o prometheus /prometheus\nUSER prometheus\n"
        'ENTRYPOINT ["prometheus"]\n'
    )
    podman.containerfile(prometheus, text)
    ports = {name: free_port() for name in ("REAPER_PORT", "PROMETHEUS_PORT", "OPENCLAW_PORT")}
    environment = {
        **podman.environment,
        **{name: str(port) for name, port in ports.items()},
        "OPENCLAW_IMAGE": gateway_image, "REAPER_IMAGE": image, "PROMETHEUS_IMAGE": prometheus,
        "COMPOSE_PROJECT_NAME": f"reaper{uuid.uuid4().hex[:8]}",
    }  # fmt: skip
    files = ("-f", "deploy/compose/compose.yaml", "--profile", "monitoring")
    compose = (tool("podman-compose"), *files)
    try:
        up = ("up", "--detach", "--no-build", "gateway", "reaper", "prometheus")
        run(*compose, *up, env=environment, timeout=300)
        port = ports["REAPER_PORT"]
        until(lambda: "OK" in get(f"http://127.0.0.1:{port}/-/ready"), "the reaper is ready")
        inside = (*compose, "exec", "-T", "gateway")
        folder = "/home/node/.openclaw"
        run(*inside, "touch", f"{folder}/stand-in/hold-a", env=environment)
        held = 'reaper_locks{state_dir="openclaw",verdict="held"}'
        until(lambda: metric(port, held) == 1, "the lock is seen")
        run(*inside, "touch", f"{folder}/stand-in/kill-a", env=environment)
        removed = 'reaper_actions_total{action="remove",outcome="removed",reason="orphan-self-pid"}'
        either = removed.replace("orphan-self-pid", "dead-pid"), removed
        until(lambda: any(metric(port, name) for name in either), "the lock is removed")
        address = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}"
        asked = "sum(reaper_actions_total{outcome='removed'})"
        until(
            lambda: [sample["value"][1] for sample in ask(address, asked)] == ["1"],
            "Prometheus has it",
        )
        (up_now,) = ask(address, "up")
        assert up_now["metric"]["job"] == "openclaw-lock-reaper"
        rules = json.loads(get(f"{address}/api/v1/rules"))["data"]["groups"]
        assert {rule["name"] for rule in rules} == {
            "openclaw-lock-reaper",
            "openclaw-lock-reaper-sidecar",
        }
        note("gateway (stand-in), reaper and Prometheus (Debian's) by podman-compose")
    finally:
        subprocess.run(
            [*compose, "down", "--volumes", "--timeout", "1"],
            env=environment, cwd=ROOT, capture_output=True, timeout=120,
        )  # fmt: skip


# systemd


def test_the_units_run_under_a_real_systemd(
    podman: Podman, image: str, base: str, state: State, note: Note
) -> None:
    """With all their hardening; the state directory is mounted, as an overlay does not count."""
    below = "localhost/reaper-test-systemd-base"
    install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends systemd-sysv"
    podman.containerfile(below, f"FROM {base}\nRUN {install} && useradd --uid 1000 openclaw\n")
    tag = "localhost/reaper-test-systemd"
    podman.containerfile(
        tag,
        f"FROM {image} AS reaper\nFROM {below}\nCOPY --from=reaper /opt/reaper /opt/reaper\n"
        "COPY stand_in.py /stand_in.py\n",
        **{"stand_in.py": STAND_IN},
    )
    units = [
        f"--volume={path}:/etc/systemd/system/{path.name}:ro"
        for path in (DEPLOY / "systemd").iterdir()
    ]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = (f"--ulimit=nofile=1024:{most}", "--ulimit=nproc=4096:4096")
    legacy = "--env=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"  # for machines with cgroup v1 only
    with podman.container(
        "--privileged",
        "--systemd=always",
        *limits,
        legacy,
        *units,
        f"--volume={state.root}:/var/lib/openclaw",
        tag,
        "/sbin/init",
    ) as machine:

        def inside(command: str) -> str:
            return podman("exec", machine, "sh", "-c", command)

        def quietly(command: str) -> str:
            done = subprocess.run(
                [podman.program, "exec", machine, "sh", "-c", command],
                env=podman.environment, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            return done.stdout.strip()

        until(
            lambda: quietly("systemctl is-system-running") in {"running", "degraded"},
            "systemd is up",
        )
        inside("systemctl start openclaw-lock-reaper")
        # An earlier sweep would hide whether the sidecar answers.
        until(lambda: quietly("/opt/reaper/bin/reaper probe").startswith("200"), "it answers")
        inside(
            "systemd-run --unit=gateway --uid=openclaw "
            "-E OPENCLAW_STATE_DIR=/var/lib/openclaw python3 /stand_in.py openclaw gateway"
        )
        folder = "/var/lib/openclaw"
        until(lambda: quietly(f"ls -d {folder}/stand-in"), "the stand-in runs")
        inside(f"touch {folder}/stand-in/hold-killed {folder}/stand-in/hold-healthy")
        locks = f"ls {folder}/agents/main/sessions"
        until(lambda: quietly(locks).count(".lock") == 2, "two locks are held")
        seen = "python3 -c 'import urllib.request as web; print(web.urlopen(\"http://127.0.0.1:9789/metrics\").read().decode())'"
        held = 'reaper_locks{state_dir="openclaw",verdict="held"} 2.0'
        until(lambda: held in quietly(seen), "both are seen as held")
        inside(f"touch {folder}/stand-in/kill-killed")
        until(lambda: quietly(locks) == "healthy.jsonl.lock", "the killed holder's lock goes")
        assert "reaper_holder_resident_memory_bytes{" in inside(seen)
        inside("systemctl reload openclaw-lock-reaper")
        inside("systemctl kill --signal=KILL openclaw-lock-reaper")
        until(lambda: quietly("/opt/reaper/bin/reaper probe").startswith("200"), "it is back")
        inside("systemctl stop openclaw-lock-reaper")
        result = inside("systemctl show --property=Result,ExecMainStatus openclaw-lock-reaper")
        assert result.splitlines() == ["Result=success", "ExecMainStatus=0"]
        inside("systemctl kill --signal=KILL gateway")
        until(lambda: quietly("systemctl is-active gateway") != "active", "the gateway is dead")
        assert quietly(locks) == "healthy.jsonl.lock"
        inside("systemctl start openclaw-lock-reaper-sweep.timer")
        inside("systemctl start openclaw-lock-reaper-sweep.service")
        assert inside(locks) == "", inside("journalctl --no-pager -u openclaw-lock-reaper-sweep")
        textfile = inside("setpriv --reuid=65534 cat /var/lib/openclaw-lock-reaper/reaper.prom")
        assert 'outcome="removed",reason="dead-pid"} 1.0' in textfile
        assert "openclaw-lock-reaper-sweep" in inside("systemctl list-timers --no-pager")
        version = inside("systemctl --version").split("(")[0]
        note(f"{version}, in a container; sidecar, its restart, reload, and the timer's sweep")


# node_exporter


def test_node_exporter_serves_the_textfile_of_a_sweep(
    state: State, tmp_path: Path, note: Note
) -> None:
    """The collector silently ignores a file that it cannot parse."""
    port = free_port()
    state.sessions.mkdir(parents=True)
    exporter = (
        tool("prometheus-node-exporter"), "--collector.disable-defaults", "--collector.textfile",
        f"--collector.textfile.directory={tmp_path}", f"--web.listen-address=127.0.0.1:{port}",
    )  # fmt: skip
    textfile = tmp_path / "reaper.prom"
    run(tool("reaper"), "sweep", "--textfile", textfile, "--state-dir", f"openclaw={state.root}")
    with process(*exporter):
        until(lambda: metric(port, 'reaper_skipped_files{reason="missing"}') == 0, "it is served")
    note("the textfile of `reaper sweep --textfile` by a real node_exporter")
