"""A soak test: run `reaper watch` for some minutes while agents, sessions and holders change.

    .venv/bin/python benchmarks/soak.py [SECONDS]

Holders take and release locks, some are killed, agents appear and disappear. Every ten seconds it
prints the sidecar's memory, descriptors, threads and series, and at the end what the sidecar did.
It exits with 1 if a live holder lost its lock.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

_CHURN = """
import json, os, random, sys, time
root, seed = sys.argv[1], int(sys.argv[2])
random.seed(seed)
stat = open("/proc/self/stat").read()
ticks = int(stat[stat.rindex(")") + 2:].split()[19])
cycles = lost = 0
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    folder = f"{root}/agents/agent{random.randrange(30)}/sessions"
    os.makedirs(folder, exist_ok=True)
    path = f"{folder}/{seed}-{cycles}.jsonl.lock"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileNotFoundError:
        continue
    created = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    record = {"pid": os.getpid(), "createdAt": created, "maxHoldMs": 300000, "starttime": ticks}
    os.write(fd, json.dumps(record).encode())
    time.sleep(random.random() * 0.6 if random.random() < 0.1 else random.random() * 0.02)
    lost += os.fstat(fd).st_nlink == 0
    os.close(fd)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    cycles += 1
print(cycles, lost)
"""


def churner(root: Path, seed: int, seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _CHURN, str(root), str(seed), str(seconds), "openclaw", "gateway"],
        stdout=subprocess.PIPE,
        text=True,
    )


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 180.0
    folder = Path(tempfile.mkdtemp(prefix="reaper-soak-"))
    root = folder / "state"
    root.mkdir()
    with (folder / "journal").open("w") as log:
        sidecar = subprocess.Popen(
            [sys.executable, "-m", "reaper", "watch", "--state-dir", str(root),
             "--listen", "127.0.0.1:9797", "--resync", "2s", "--log-format", "json"],
            stderr=log,
        )  # fmt: skip
    process = psutil.Process(sidecar.pid)
    steady = [churner(root, seed, seconds) for seed in range(3)]
    started = time.monotonic()
    next_line = started + 5
    number = 100
    print("seconds  rss_kib  fds  threads  series  cpu_s")
    while any(process.poll() is None for process in steady):
        doomed = churner(root, number, 60)
        number += 1
        time.sleep(1.0)
        doomed.kill()
        doomed.communicate()
        if random.randrange(5) == 0:
            agent = root / "agents" / f"agent{random.randrange(30)}"
            gone = folder / f"gone{number}"
            if agent.exists() and not any(agent.glob("sessions/*.lock")):
                agent.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
        if time.monotonic() >= next_line:
            next_line += 10
            with urllib.request.urlopen("http://127.0.0.1:9797/metrics") as answer:
                text = answer.read().decode()
            series = sum(not line.startswith("#") for line in text.splitlines())
            cpu = process.cpu_times()
            print(
                f"{time.monotonic() - started:7.0f}  {process.memory_info().rss // 1024:7}"
                f"  {process.num_fds():3}  {process.num_threads():7}  {series:6}"
                f"  {cpu.user + cpu.system:.1f}"
            )
    counted = [process.communicate()[0].split() for process in steady]
    lost = sum(int(counts[1]) for counts in counted)
    print(f"{sum(int(counts[0]) for counts in counted)} holds, {lost} lost to their live holders")
    wanted = ("reaper_actions_total", "reaper_reap_delay")
    for line in text.splitlines():
        if line.startswith(wanted) and not line.endswith(" 0.0") and "bucket" not in line:
            print(line)
    sidecar.terminate()
    print(f"exit code {sidecar.wait()}")
    shutil.rmtree(folder)
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
