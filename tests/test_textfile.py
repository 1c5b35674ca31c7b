"""The files that consecutive sweeps write for node_exporter."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from reaper.reports.textfile import Continued, OldCounts, TextfileError
from tests.conftest import DEAD, HoldLock, Tree, record
from tests.processes import reap
from tests.test_metrics import promtool

Sweep = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "reaper.prom"


@pytest.fixture
def sweep(tree: Tree, target: Path) -> Sweep:
    return lambda *options: reap(
        "sweep", "-q", "--state-dir", tree.root, "--textfile", target, "--exit-zero", *options
    )


def value(target: Path, name: str, **labels: str) -> float:
    """Return the value of the metric whose labels include these."""
    found = []
    for line in target.read_text().splitlines():
        match = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
        if match and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', match[1] or "")).items():
            found.append(float(match[2]))
    (only,) = found
    return only


REMOVED = {"reason": "dead-pid", "outcome": "removed"}


def test_counters_continue_from_sweep_to_sweep_and_gauges_do_not(
    tree: Tree, target: Path, sweep: Sweep, hold: HoldLock
) -> None:
    hold("overdue", age=7200)
    for count in (1, 2, 3):
        for number in range(2):
            tree.lock(f"dead{number}", record(DEAD))
        done = sweep()
        assert (done.returncode, done.stderr) == (0, "")
        assert value(target, "reaper_actions_total", **REMOVED) == 2 * count
        assert value(target, "reaper_actions_total", outcome="flagged") == count
        assert value(target, "reaper_sweep_duration_seconds_count") == count
        assert value(target, "reaper_sweep_duration_seconds_bucket", le="+Inf") == count
        assert value(target, "reaper_stuck_locks") == 1
        assert value(target, "reaper_watched_folders") == 1
    assert promtool(target.read_text()) == ""
    assert sorted(os.listdir(target.parent)) == ["reaper.prom", "state"]


def test_an_error_counts_in_each_sweep(tree: Tree, target: Path, sweep: Sweep) -> None:
    (tree.root / "agents" / "linked").symlink_to("/nowhere")
    for count in (1, 2, 3):
        assert sweep().returncode == 1
        assert value(target, "reaper_errors_total", kind="unreadable") == count


def test_counts_that_this_sweep_does_not_change_are_kept(
    tree: Tree, target: Path, sweep: Sweep
) -> None:
    for options in ((), ("--dry-run",), ()):
        tree.lock("dead", record(DEAD))
        assert sweep(*options).returncode == 0
    assert value(target, "reaper_actions_total", **REMOVED) == 2
    assert value(target, "reaper_actions_total", outcome="would-remove", reason="dead-pid") == 1


def _foreign(path: Path) -> None:
    path.write_text("# TYPE apt_upgrades gauge\napt_upgrades 3\n")


def _half(path: Path) -> None:
    path.write_text(path.read_text()[:-20] + "\nreaper_x{")


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff" * 100)


def _negative(path: Path) -> None:
    text = path.read_text()
    path.write_text(re.sub(r"(reaper_sweep_duration_seconds_count) .*", r"\1 -1", text))


def _no_number(path: Path) -> None:
    text = path.read_text()
    path.write_text(re.sub(r"(reaper_sweep_duration_seconds_count) .*", r"\1 NaN", text))


def _huge(path: Path) -> None:
    os.truncate(path, 17 * 1024 * 1024)


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_foreign, "another program wrote it"),
        (_half, "it cannot be read as metrics"),
        (_binary, "it is no text"),
        (_negative, "it cannot be read as metrics"),
        (_no_number, "it cannot be read as metrics"),
        (_huge, "it is too large"),
        (_link, "'reaper.prom' is no regular file"),
        (_fifo, "'reaper.prom' is no regular file"),
    ],
)
def test_an_unusable_old_file_is_reported_and_counters_start_from_0(
    tree: Tree, target: Path, sweep: Sweep, spoil: Callable[[Path], None], why: str
) -> None:
    for _ in range(2):
        tree.lock("dead", record(DEAD))
        assert sweep().returncode == 0
    spoil(target)
    tree.lock("dead", record(DEAD))
    done = sweep()
    assert done.returncode == 0
    assert f"the old {target} is not used, so its counters start from 0: {why}" in done.stderr
    assert value(target, "reaper_actions_total", **REMOVED) == 1
    assert sweep().stderr == ""


def test_a_name_that_node_exporter_does_not_read_is_refused(tree: Tree, tmp_path: Path) -> None:
    path = tree.lock("dead", record(DEAD))
    done = reap("sweep", "--state-dir", tree.root, "--textfile", tmp_path / "reaper.txt")
    assert done.returncode == 2
    assert ".prom" in done.stderr
    assert path.exists()


# Without files


def written(*, buckets: tuple[float, ...] = (1, 2), label: str = "kind") -> CollectorRegistry:
    """Return the counts of one sweep."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as Metrics does
    registry = CollectorRegistry()
    Gauge("reaper_build_info", "-", registry=registry).set(7)
    Counter("reaper_errors_total", "-", [label], registry=registry).labels("a").inc()
    Histogram("reaper_took_seconds", "-", buckets=buckets, registry=registry).observe(1.5)
    return registry


def after(old: str, now: CollectorRegistry) -> str:
    return generate_latest(Continued(now, OldCounts(old))).decode()


def test_the_buckets_of_a_histogram_are_added_in_order() -> None:
    text = after(after("", written()), written())
    took = [line for line in text.splitlines() if line.startswith("reaper_took_seconds")]
    assert took == [
        'reaper_took_seconds_bucket{le="1.0"} 0.0',
        'reaper_took_seconds_bucket{le="2.0"} 2.0',
        'reaper_took_seconds_bucket{le="+Inf"} 2.0',
        "reaper_took_seconds_count 2.0",
        "reaper_took_seconds_sum 3.0",
    ]
    assert "reaper_build_info 7.0" in text


def test_counters_with_other_buckets_or_labels_start_from_0() -> None:
    old = after("", written(buckets=(1, 5), label="type"))
    text = after(old, written())
    assert 'reaper_took_seconds_bucket{le="2.0"} 1.0' in text
    assert 'le="5.0"' not in text
    assert 'reaper_errors_total{kind="a"} 1.0' in text
    assert "type=" not in text


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
@example('reaper_build_info{version="1')
@example("# TYPE reaper_build_info gauge\nreaper_build_info 1\nx{a=b} 1")
@example("# HELP x y z\n# TYPE\n#")
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        old = OldCounts(text)
    except TextfileError:
        return
    assert b"reaper_build_info 7.0" in generate_latest(Continued(written(), old))
