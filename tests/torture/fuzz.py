"""Fuzz targets: with any bytes, nothing raises and no live lock is removed.

`make torture` runs them under atheris, guided by coverage (guided.py); `make test` runs them on the
corpus and a bounded number of mutations (test_fuzz.py).
"""

import os
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from reaper.core.evidence import Holder, HolderState
from reaper.core.json_text import NotJsonError, loads
from reaper.core.lock import StateDir
from reaper.core.other_locks import Suspects
from reaper.core.policy import Policy
from reaper.core.record import parse, parse_date
from reaper.core.text import printable
from reaper.core.verdict import Limits
from reaper.sweep import Reaper
from tests.torture.attacker import DEAD

_SEPARATOR: Final = b"\n--\n"
_NAMES: Final = (
    "one.jsonl.lock",
    "live.jsonl.lock",
    "sessions.json",
    "one.trajectory.jsonl",
    "one.trajectory-path.json",
    ".rprabcde-one~",
    ".rprabcde-live~",
    "one.jsonl",
    "one.checkpoint.1.jsonl",
)
_ENDED: Final = (
    b'{"type":"session.started","runId":"r","ts":"2026-05-24T10:28:00.000Z"}\n'
    b'{"type":"session.ended","runId":"r","ts":"2026-05-24T10:29:16.000Z","data":{"aborted":true}}\n'
)
CORPUS: Final = (
    b"",
    DEAD,
    b'{"pid":1,"createdAt":"2026-05-24","maxHoldMs":1e999,"starttime":NaN}',
    b'{"pid":' + b"9" * 5000 + b"}",
    b"[" * 5000,
    b"\xef\xbb\xbf{}",
    b'{"pid":1,"pid":true}',
    b"\x00" + DEAD + _SEPARATOR + b'\x02{"k":{"sessionId":"one","status":"running"}}',
    b"\x01" + DEAD + _SEPARATOR + b"\x06" + DEAD,
    b"\x00" + DEAD + _SEPARATOR + b"\x03" + _ENDED + _SEPARATOR + b'\x02{"k":{"sessionId":"one",'
    b'"status":"timeout","startedAt":1,"endedAt":9999999999999}}',
    b'\x04{"runtimeFile":"../../etc/passwd"}' + _SEPARATOR + b"\x00" + DEAD,
    b"\x05" + _SEPARATOR + b"\x08" + _SEPARATOR + b"\x07x",
    b"\xff\xfe\x1b[2J.jsonl.lock\n" + DEAD,
    b".rpr00000-" + b"x" * 244 + b"~\n" + DEAD,
)


def reads(data: bytes) -> None:
    """Parse the bytes as a lock file, as JSON and as a date, and print them."""
    record = parse(data)
    assert record.pid is None or record.pid >= 1
    text = data.decode(errors="surrogateescape")
    assert printable(text).isprintable()
    parse_date(text)
    with suppress(NotJsonError):
        loads(data)


class _Clock:
    """A clock that only sleep moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def wall_ms(self) -> int:
        return 1_800_000_000_000 + int(self.now * 1000)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class _Nobody:
    """A process table in which each process is dead, so only the hold proof protects a lock."""

    def holder(
        self, pid: int | None, starttime: int | None, *, seen_as: int | None = None
    ) -> Holder:
        return Holder(state=HolderState.UNNAMED if pid is None else HolderState.GONE)

    def began_ms(self, starttime: int) -> int:
        return 0

    def suspects(self, pid: int | None, state_dir: tuple[int, int] | None) -> Suspects:
        return Suspects()

    def has_open(self, pid: int, path_end: str) -> bool | None:
        return False

    def shares_state_dir(self, holder: Holder, state_dir: tuple[int, int]) -> bool:
        return False


def _plant(folder: Path, data: bytes) -> None:
    for entry in data.split(_SEPARATOR)[:16]:
        if entry[:1] and entry[0] < len(_NAMES):
            name, content = _NAMES[entry[0]], entry[1:]
        else:
            raw, _, content = entry.partition(b"\n")
            name = os.fsdecode(raw.replace(b"/", b"").replace(b"\0", b"")[:255])
        if name in {"", ".", ".."} or name.startswith("live.trajectory"):
            continue  # a forged trajectory can free a held lock: test_lies.py
        path = folder / name
        path.write_bytes(content)  # in place, if it exists
        os.utime(path, (0, 0))


def sweeps(data: bytes) -> None:
    """Sweep a folder with these files, through all graces; a lock that is held open stays."""
    with tempfile.TemporaryDirectory(prefix="reaper-fuzz-") as root:
        folder = Path(root) / "agents/main/sessions"
        folder.mkdir(parents=True)
        live = folder / "live.jsonl.lock"
        with live.open("wb") as held:
            _plant(folder, data)
            mine = os.fstat(held.fileno()).st_ino
            states = [StateDir("fuzz", root)]
            reaper = Reaper(
                states, limits=Limits(), policy=Policy(), clock=_Clock(), process_table=_Nobody
            )
            for _ in reaper.sweep():
                pass
            assert live.stat().st_ino == mine


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {"reads": reads, "sweeps": sweeps}


def mutated(cases: int) -> list[bytes]:
    """Return that many mutations of the corpus, the same in each call."""
    chance = random.Random(86014)
    found = []
    for _ in range(cases):
        data = bytearray(chance.choice(CORPUS))
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(4):
                case 0:
                    data[at:at] = chance.randbytes(chance.randrange(1, 9))
                case 1:
                    del data[at : at + chance.randrange(1, 9)]
                case 2:
                    data[at : at + 1] = bytes([chance.randrange(256)])
                case _:
                    data[at:at] = chance.choice(CORPUS)[: chance.randrange(1, 200)]
        found.append(bytes(data))
    return found
