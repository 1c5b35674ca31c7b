"""Time from the death of a holder until its lock is gone: the sidecar and a simple loop.

    .venv/bin/python benchmarks/deaths.py [SCENARIO...]

The loop (death_loop.py) waits on pidfds, unlinks, and checks nothing. Both programs run all the
time, each with its own equal state directory. The holders die one at a time, alternately in both
directories, so that noise affects both equally.
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from sidecar import Sidecar, forked, gone, percentiles, scraped, sessions, sidecar, state_dir, until
from trees import Holder

_LOOP: Final = str(Path(__file__).with_name("death_loop.py"))
_AGENTS: Final = 10
_OF_ONE_SWEEP: Final = 10
"""Deaths in each directory during one full sweep, 30 ms apart."""


@contextmanager
def death_loop(root: Path) -> Iterator[None]:
    """Run the simple loop; when this returns, the loop waits for all holders."""
    with subprocess.Popen(
        [sys.executable, _LOOP, str(root)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.kill()


def _crowd(root: Path, locks: int, stack: ExitStack) -> None:
    """Start a process that holds this number of other locks."""
    holder = Holder()
    stack.callback(holder.close)
    for number in range(locks):
        holder.hold(sessions(root, f"crowd{number % _AGENTS}") / f"{number}.jsonl.lock")
    holder.settle()


def deaths(
    others: int = 0, count: int = 300, scraped_every: float | None = None, *, sweeping: bool = False
) -> dict[str, Any]:
    """`count` holders of each program die one after the other, while `others` more locks are held.
    With `sweeping`, they die during full sweeps of the sidecar. A sweep uses a processor, for which
    a dying process also waits, so holders of the loop also die during sweeps.
    """
    with ExitStack() as stack:
        roots = [stack.enter_context(state_dir()) for _ in range(2)]
        for root in roots:
            _crowd(root, others, stack)
        ours, loops = (stack.enter_context(forked(sessions(root, "main"), count)) for root in roots)
        the_sidecar = stack.enter_context(sidecar(roots[0]))
        until(lambda: the_sidecar.held() == count + others, "all held")
        stack.enter_context(death_loop(roots[1]))
        if scraped_every is not None:
            stack.enter_context(scraped(the_sidecar, scraped_every))
        took: dict[str, list[float]] = {"reaper": [], "loop": []}
        swept_meanwhile = 0
        at_once = _OF_ONE_SWEEP if sweeping else 1
        for first in range(0, count, at_once):
            turn = slice(first, first + at_once)
            if sweeping:
                swept_before = the_sidecar.of_sweeps("count")
                the_sidecar.process.send_signal(signal.SIGHUP)
                time.sleep(0.05)
            for (our, our_pid), (other, other_pid) in zip(ours[turn], loops[turn], strict=True):
                took["reaper"].append(_freed(our, our_pid))
                took["loop"].append(_freed(other, other_pid))
            if sweeping:
                swept_meanwhile += the_sidecar.of_sweeps("count") == swept_before
                until(lambda: the_sidecar.of_sweeps("count") > swept_before, "the end of a sweep")  # noqa: B023  # called here
        found: dict[str, Any] = {name: percentiles(times) for name, times in took.items()}
        if sweeping:
            found["reaper"]["while_sweeping"] = swept_meanwhile
        found["ratios"] = {
            key: round(found["reaper"][f"{key}_ms"] / found["loop"][f"{key}_ms"], 2)
            for key in ("p50", "p99")
        }
        return found


def _freed(path: Path, pid: int) -> float:
    """Kill a holder; return the seconds until its lock is gone."""
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    took = gone(path) - began
    time.sleep(0.02)
    return took


def many_deaths(count: int = 1000, turns: int = 3) -> dict[str, Any]:
    """Kill many holders with one signal. Measure the time from this call until all locks are gone,
    and the time of the call.
    """
    found: dict[str, Any] = {"reaper": [], "loop": []}
    killing, cpu, fds = [], [], 0
    for _ in range(turns):
        for name, times in found.items():
            with (
                state_dir() as root,
                forked(sessions(root, "main"), count) as held,
                ExitStack() as on,
            ):
                the_sidecar = None
                if name == "loop":
                    on.enter_context(death_loop(root))
                else:
                    the_sidecar = on.enter_context(sidecar(root))
                    until(partial(_holds, the_sidecar, count), "all held")
                    fds = the_sidecar.process.num_fds()
                    used = the_sidecar.cpu()
                began = time.monotonic()
                os.killpg(held[0][1], signal.SIGKILL)
                killing.append(time.monotonic() - began)
                times.append(_emptied(sessions(root, "main")) - began)
                if the_sidecar is not None:
                    cpu.append(the_sidecar.cpu() - used)
    ratios = [a / b for a, b in zip(found["reaper"], found["loop"], strict=True)]
    return {
        "reaper": {
            "seconds": round(statistics.median(found["reaper"]), 3),
            "cpu_seconds": round(statistics.median(cpu), 3),
            "descriptors": fds,
        },
        "loop": {"seconds": round(statistics.median(found["loop"]), 3)},
        "killing": {"seconds": round(statistics.median(killing), 3), "count": count},
        "ratios": {"total": round(statistics.median(ratios), 2)},
    }


def _holds(sidecar: Sidecar, count: int) -> bool:
    return sidecar.held() == count


def _emptied(folder: Path) -> float:
    """Wait until the folder is empty; return the time."""
    dir_fd = os.open(folder, os.O_RDONLY)
    try:
        while os.listdir(dir_fd):
            time.sleep(0.01)  # because each listing blocks the processes that rename there
        return time.monotonic()
    finally:
        os.close(dir_fd)


SCENARIOS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "alone": deaths,
    "beside_1000": lambda: deaths(1000),
    "while_scraped": lambda: deaths(1000, scraped_every=0.1),
    "while_sweeping_10000": lambda: deaths(10_000, sweeping=True),
    "1000_at_once": many_deaths,
}


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in sys.argv[1:] or SCENARIOS:
        print(json.dumps({name: SCENARIOS[name]()}), flush=True)
