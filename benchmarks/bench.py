"""Run all measurements, and the programs to compare with: `make bench`.

Writes benchmarks/results.json, docs/performance.svg, and the tables in docs/performance.md.
"""

import argparse
import compileall
import functools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import counts
import deaths
import sidecar
import trees

ROOT: Final = Path(__file__).resolve().parent.parent
HERE: Final = ROOT / "benchmarks"
REAPER: Final = str(Path(sys.executable).with_name("reaper"))
NOTE: Final = ROOT / "docs" / "performance.md"

sys.path.insert(0, str(ROOT))
from tests.openclaw_package import OpenClaw, Unavailable, install  # noqa: E402  # shared with the tests

Commands = dict[str, list[str]]
Runs = dict[str, dict[str, list[float]]]


def interleaved(commands: Commands, runs: int, *, warm: tuple[str, ...]) -> Runs:
    """Run the commands in turn, each `runs` times, so that noise affects all equally. Return wall
    and CPU seconds, and peak MiB. The `warm` commands first run once without being measured.
    """
    found: Runs = {name: {"wall": [], "cpu": [], "peak": []} for name in commands}
    order = [name for name in commands if name in warm] + list(commands) * runs
    for turn, name in enumerate(order):
        began = time.monotonic()
        with subprocess.Popen(commands[name], stdout=subprocess.DEVNULL) as process:
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        wall = time.monotonic() - began
        if turn >= len(order) - len(commands) * runs:
            found[name]["wall"].append(wall)
            found[name]["cpu"].append(usage.ru_utime + usage.ru_stime)
            found[name]["peak"].append(usage.ru_maxrss / 1024)
    return found


def summary(runs: Runs) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(statistics.median(values), 4) for key, values in measured.items()}
        for name, measured in runs.items()
    }


def ratio(runs: Runs, one: str, other: str, key: str) -> float:
    """Return the median of the ratios of all turns."""
    pairs = zip(runs[one][key], runs[other][key], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 2)


def sweeps(sizes: list[int], runs: int, folder: Path) -> list[dict[str, Any]]:
    """Measure a dry sweep of trees with locks of all kinds."""
    rows = []
    small = [(folder / "small", 100)]
    for root, locks in [*small, *((folder / "state", size) for size in sizes)]:
        with trees.tree(root) if root == small[0][0] else nullcontext(_kept(root)) as tree:
            began = time.monotonic()
            tree.grow(locks)
            print(f"{locks} locks made in {time.monotonic() - began:.0f} s", flush=True)
            rows.append(swept(root, locks, runs, with_bash=locks <= small[0][1]))
    return rows


def dead_sweeps(sizes: list[int], runs: int, folder: Path) -> list[dict[str, Any]]:
    """Measure a dry sweep of trees in which each lock names another dead process."""
    rows = []
    for size in sizes:
        root = folder / f"dead{size}"
        trees.dead_tree(root, size)
        rows.append(swept(root, size, runs))
        shutil.rmtree(root)
    return rows


def swept(root: Path, locks: int, runs: int, *, with_bash: bool = False) -> dict[str, Any]:
    """Measure a dry sweep of one tree, and the programs to compare with."""
    where = str(root)
    commands = {
        "floor": [sys.executable, str(HERE / "floor.py"), where],
        "find": ["find", where, "-name", "*.jsonl.lock", "-mmin", "+2"],
        "reaper": [REAPER, "sweep", "--dry-run", "--wait", "0", "--quiet", "--state-dir", where],
    }
    gateway = _gateway()
    if gateway is not None:
        commands["gateway"] = [
            str(gateway.node), str(HERE / "gateway.mjs"), str(gateway.lock_module), where
        ]  # fmt: skip
    if with_bash:
        commands["bash"] = ["bash", str(HERE / "loop.sh"), where]
    found = interleaved(commands, runs, warm=("floor", "find"))
    row = {
        "locks": locks,
        "files": sum(len(files) for _, _, files in os.walk(where)),
        "load": os.getloadavg()[0],
        **summary(found),
        "ratios": {
            name: {key: ratio(found, name, "reaper", key) for key in ("wall", "cpu")}
            for name in commands
        },
    }
    print(json.dumps(row), flush=True)
    return row


@functools.cache
def _gateway() -> OpenClaw | None:
    try:
        return install()
    except Unavailable as error:
        print(f"cannot compare with the gateway's code: {error}", file=sys.stderr)
        return None


_grown: dict[Path, trees.Tree] = {}


def _kept(root: Path) -> trees.Tree:
    """Return the one tree that grows from size to size."""
    return _grown.setdefault(root, trees.Tree(root))


def cold(runs: int, folder: Path) -> dict[str, Any]:
    """Measure `reaper list` on an empty state directory, Python alone, and the import of typer. The
    ratio "list beyond typer" is the time of `reaper list` without typer, divided by Python's.
    """
    empty = folder / "empty"
    empty.mkdir()
    commands = {
        "pass": [sys.executable, "-c", "pass"],
        "typer": [sys.executable, "-c", "import typer"],
        "list": [REAPER, "list", "--state-dir", str(empty)],
    }
    found = interleaved(commands, runs, warm=tuple(commands))
    ratios = {
        name: {key: ratio(found, name, "pass", key) for key in ("wall", "cpu")} for name in commands
    }
    ours = {
        key: round(
            statistics.median(
                (whole - typer) / base
                for whole, typer, base in zip(
                    found["list"][key], found["typer"][key], found["pass"][key], strict=True
                )
            ),
            2,
        )
        for key in ("wall", "cpu")
    }
    return {**summary(found), "ratios": {**ratios, "list beyond typer": ours}, "runs": runs}


def measured(scenarios: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, Any]:
    """Return the figures of each scenario, and the load when it began."""
    found: dict[str, Any] = {}
    for name, scenario in scenarios.items():
        load = os.getloadavg()[0]
        found[name] = {**scenario(), "load": load}
        print(json.dumps({name: found[name]}), flush=True)
    return found


def _table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *[[str(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def sweep_table(rows: list[dict[str, Any]]) -> str:
    """Return the times of each program; all except the first column are medians."""
    names = ["floor", "find", "reaper", "gateway", "bash"]
    lines: list[list[object]] = []
    for row in rows:
        shown = [f"{row[name]['wall']:.2f}" if name in row else "-" for name in names]
        ratios = row["ratios"]
        to_floor = [f"{1 / ratios['floor'][key]:.1f}" for key in ("wall", "cpu")]
        to_gateway = [
            f"{ratios['gateway'][key]:.1f}" if "gateway" in ratios else "-"
            for key in ("wall", "cpu")
        ]
        lines.append([
            f"{row['locks']:,} / {row['files']:,}", *shown, *to_floor, *to_gateway,
            f"{row['reaper']['peak']:.0f}", f"{row['load']:.1f}",
        ])  # fmt: skip
    head = ["locks / files", *(f"{name}, s" for name in names)]
    head += ["reaper : floor, wall", "CPU", "gateway : reaper, wall", "CPU", "peak, MiB", "load"]
    return _table(head, lines)


def counts_table(found: dict[str, float]) -> str:
    head = ["calls of Python functions", "system calls"]
    return _table(head, [[found["python_calls"], found["system_calls"]]])


def cold_table(found: dict[str, Any]) -> str:
    rows: list[list[object]] = [
        [f"`{label}`", f"{found[name]['wall'] * 1000:.0f}", f"{found[name]['cpu'] * 1000:.0f}",
         found["ratios"][name]["wall"], found["ratios"][name]["cpu"]]
        for name, label in {
            "pass": "python -c pass",
            "typer": "python -c 'import typer'",
            "list": "reaper list",
        }.items()
    ]  # fmt: skip
    ours = found["ratios"]["list beyond typer"]
    rows.append(["`reaper list` beyond typer", "", "", ours["wall"], ours["cpu"]])
    return _table(["program", "wall, ms", "CPU, ms", "ratio, wall", "ratio, CPU"], rows)


_LEFT_OUT: Final = {"most_ms", "count", "series"}
"""Figures that are not in the table, only in results.json."""


def deaths_table(found: dict[str, Any]) -> str:
    lines: list[list[object]] = []
    for name, value in found.items():
        ratios = value["ratios"]
        lines.append([
            name.replace("_", " "),
            *(_time_of(value[program]) for program in ("reaper", "loop")),
            " / ".join(f"{ratio:.1f}" for ratio in ratios.values()),
            f"{value['load']:.1f}",
        ])  # fmt: skip
    return _table(["holders die", "reaper", "loop", "ratio", "load"], lines)


def _time_of(measured: dict[str, float]) -> str:
    if "seconds" in measured:
        return f"{measured['seconds'] * 1000:.0f} ms for all"
    return f"{measured['p50_ms']:.1f} / {measured['p99_ms']:.1f} ms"


def sidecar_table(found: dict[str, Any]) -> str:
    lines: list[list[object]] = []
    for name, value in found.items():
        load = value.pop("load")
        inner = {name: value} if not isinstance(next(iter(value.values())), dict) else value
        for part, values in inner.items():
            label = name if part == name else f"{name}: {part}"
            text = ", ".join(
                f"{key} {value}" for key, value in values.items() if key not in _LEFT_OUT
            )
            lines.append([label.replace("_", " "), text.replace("_", " "), f"{load:.1f}"])
        value["load"] = load
    return _table(["scenario", "measured", "load"], lines)


_COLOURS: Final = {
    "floor": "#888", "find": "#b8860b", "reaper": "#1f77b4", "gateway": "#d62728", "bash": "#2ca02c"
}  # fmt: skip


def plot(rows: list[dict[str, Any]]) -> str:
    """Return an SVG: seconds by number of locks, both logarithmic."""
    from math import log10  # noqa: PLC0415  # only used here

    width, height, left, top = 640, 380, 60, 20
    times = [row[name]["wall"] for row in rows for name in _COLOURS if name in row]
    low, high = log10(min(times)) // 1, -(-log10(max(times)) // 1)
    first, last = log10(rows[0]["locks"]), log10(rows[-1]["locks"])

    def at(locks: float, seconds: float) -> tuple[float, float]:
        x = left + (log10(locks) - first) / max(last - first, 1e-9) * (width - left - 110)
        return x, top + (high - log10(seconds)) / (high - low) * (height - top - 50)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>',
    ]
    for power in range(int(low), int(high) + 1):
        x, y = at(rows[0]["locks"], 10.0**power)
        parts.append(f'<path d="M{x:.0f} {y:.0f}H{width - 110}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8:.0f}" y="{y + 4:.0f}" text-anchor="end">{10.0**power:g} s')
        parts.append("</text>")
    for row in rows:
        x, y = at(row["locks"], 10.0**low)
        parts.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" text-anchor="middle">{row["locks"]:,}')
        parts.append("</text>")
    parts.append(f'<text x="{left + 200}" y="{height - 8}">locks, among twelve times as many files')
    parts.append("</text>")
    for name, colour in _COLOURS.items():
        points = [at(row["locks"], row[name]["wall"]) for row in rows if name in row]
        if not points:
            continue
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        x, y = points[-1]
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def write(results: dict[str, Any]) -> None:
    """Write the results, the plot, and the tables of the document."""
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (ROOT / "docs" / "performance.svg").write_text(plot(results["sweeps"]))
    note = NOTE.read_text()
    tables = {
        "machine": f"{results['machine']}\n",
        "sweeps": sweep_table(results["sweeps"]),
        "dead": sweep_table(results["dead"]),
        "counts": counts_table(results["counts"]),
        "cold": cold_table(results["cold"]),
        "deaths": deaths_table(results["deaths"]),
        "sidecar": sidecar_table(results["sidecar"]),
    }
    for name, table in tables.items():
        before, mark, rest = note.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if not mark or not end:
            raise LookupError(f"{NOTE.name} has no place for {name}")
        note = f"{before}{mark}\n{table}\n{end}{after}"
        print(f"\n{table}")
    NOTE.write_text(note)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--locks", type=int, default=100_000, help="size of the largest tree")
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--keep-sweeps", action="store_true", help="do not measure the sweeps")
    given = options.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(ROOT / "reaper", quiet=1)  # as an installation does
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sizes = [size for size in (1000, 10_000, 100_000) if size <= given.locks]
    folder = Path(tempfile.mkdtemp(prefix="reaper-bench-"))
    try:
        results: dict[str, Any] = {
            "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, "
            f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the start; "
            f"medians of {given.runs} runs by turns",
            "counts": counts.counts(),
            "cold": cold(3 * given.runs, folder),
            "deaths": measured(deaths.SCENARIOS),
            "sidecar": measured(sidecar.SCENARIOS),
        }
        if given.keep_sweeps:
            known = json.loads((HERE / "results.json").read_text())
            results |= {name: known[name] for name in ("sweeps", "dead")}
        else:
            dead_sizes = [size for size in (20_000, 100_000) if size <= given.locks]
            results["dead"] = dead_sweeps(dead_sizes or sizes, given.runs, folder)
            results["sweeps"] = sweeps(sizes, given.runs, folder)
        write(results)
    finally:
        for tree in _grown.values():
            tree.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
