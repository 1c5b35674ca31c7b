"""The process table, through psutil: which process a record's pid and start time mean now."""

import errno
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psutil

from reaper.core.abandoned import NOT_VISIBLE
from reaper.core.evidence import Holder, HolderState, Program
from reaper.core.other_locks import Suspects
from reaper.core.programs import program_of
from reaper.core.state_dirs import state_dir_candidates

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PID_LIMIT: Final = 2**31 - 1
_BOOT_TIME_TRIES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProcessSnapshot:
    """One process, or its absence, as looked at once."""

    state: HolderState
    starttime: int | None = None
    program: Program = Program.UNKNOWN


_GONE: Final = _ProcessSnapshot(state=HolderState.GONE)
_GONE_HOLDER: Final = Holder(state=HolderState.GONE)


class ProcessTable:
    """The process table at one moment: each pid is looked at once. Make a new one for each pass."""

    def __init__(self) -> None:
        self._seen: dict[int, _ProcessSnapshot] = {}
        self._holders: dict[tuple[int | None, int | None, bool], Holder] = {}
        self._nested: dict[tuple[int, int], int] | None = None
        self._nested_complete = True
        self._state_dirs: dict[int, tuple[int, int] | None] = {}
        self._users: list[tuple[int, int] | None] | None = None

    def holder(
        self, pid: int | None, starttime: int | None, *, seen_as: int | None = None
    ) -> Holder:
        """Return the state of the record's holder now.

        GONE only if the kernel says ESRCH. Another start time is REUSED, and so is a pid that is
        only a thread id of another process. Missing rights are UNKNOWN. Without a recorded start
        time, a live process that does not belong to OpenClaw is FOREIGN_PROGRAM. A holder in a
        nested PID namespace is found by the last pid of its NSpid line and its start time. This
        search is left out if `seen_as` is the recorded pid: then the holder is known to have had
        that pid in our own namespace.
        """
        key = (pid, starttime, seen_as is not None and seen_as == pid)
        holder = self._holders.get(key)
        if holder is None:
            holder = self._holders[key] = self._find_holder(*key)
        return holder

    def _find_holder(self, pid: int | None, starttime: int | None, known_here: bool) -> Holder:
        if pid is None:
            return Holder(state=HolderState.UNNAMED)
        # As `_look` below, but without another call for each of 100,000 dead holders.
        seen = self._seen.get(pid) or self._seen.setdefault(pid, _look(pid))
        if seen.state is HolderState.ZOMBIE and starttime not in {None, seen.starttime}:
            state = HolderState.REUSED
        elif seen.state is HolderState.SAME:
            if starttime is None:
                foreign = seen.program is Program.OTHER
                state = HolderState.FOREIGN_PROGRAM if foreign else HolderState.SAME
            elif seen.starttime == starttime:
                state = HolderState.SAME
            else:
                state = HolderState.REUSED
        else:
            state = seen.state
        if state in NOT_VISIBLE and starttime is not None and not known_here:
            if self._nested is None:
                self._nested = self._nested_pids()
            nested = self._nested.get((pid, starttime))
            if nested is not None:
                return self._as_holder(nested, HolderState.SAME, self._look(nested))
            if not self._nested_complete:
                # It may be one of those that could not be read, so it is not known to be dead.
                return Holder(state=HolderState.UNKNOWN)
        return _GONE_HOLDER if seen is _GONE else self._as_holder(pid, state, seen)

    def _as_holder(self, pid: int, state: HolderState, seen: _ProcessSnapshot) -> Holder:
        if state is not HolderState.SAME or seen.starttime is None:
            return Holder(state=state, program=seen.program)
        return Holder(state=state, program=seen.program, pid=pid, up_for=up_for(seen.starttime))

    def _look(self, pid: int) -> _ProcessSnapshot:
        return self._seen.get(pid) or self._seen.setdefault(pid, _look(pid))

    def _nested_pids(self) -> dict[tuple[int, int], int]:
        """Return the pid here of each process in a nested PID namespace, by its pid there and its
        start time. Clear `_nested_complete` if one of them cannot be read.
        """
        nested = {}
        for outer in psutil.pids():
            try:
                inner = _innermost_pid(outer)
            except OSError:
                self._nested_complete = False
                continue
            if inner is not None:
                seen = self._look(outer)
                if seen.starttime is None:
                    self._nested_complete &= seen.state is HolderState.GONE
                elif seen.state is HolderState.SAME:
                    nested[inner, seen.starttime] = outer
        return nested

    def shares_state_dir(self, holder: Holder, state_dir: tuple[int, int]) -> bool:
        """Whether this holder is known to use this state directory through the same mount. If the
        holder is not visible: whether there are visible OpenClaw processes and all of them do.
        """
        if holder.pid is not None:
            return self._state_dir(holder.pid) == state_dir
        if self._users is None:
            self._users = [
                self._state_dir(pid)
                for pid in psutil.pids()
                if self._look(pid).program in {Program.GATEWAY, Program.AGENT}
            ]
        return bool(self._users) and all(user == state_dir for user in self._users)

    def _state_dir(self, pid: int) -> tuple[int, int] | None:
        if pid not in self._state_dirs:
            self._state_dirs[pid] = _state_dir_of(pid)
        return self._state_dirs[pid]

    def suspects(self, pid: int | None, state_dir: tuple[int, int] | None) -> Suspects:
        """Look for the processes that may hold a lock whose record has this pid, in any PID
        namespace; without a pid, for those that may have made a guard: OpenClaw's and node's.

        All of them are visible from the initial PID namespace, and from any other one in which a
        gateway of this state directory runs.
        """
        if self._nested is None:
            self._nested = self._nested_pids()
        if pid is None:
            pids = {outer for outer in psutil.pids() if self._may_make_guards(outer)}
        else:
            pids = {pid, *(outer for (inner, _), outer in self._nested.items() if inner == pid)}
        seen = [self._look(outer) for outer in pids]
        living = [
            process
            for process in seen
            if process.state not in {HolderState.GONE, HolderState.ZOMBIE}
        ]
        starts = [process.starttime for process in living if process.starttime is not None]
        all_seen = len(starts) == len(living) and self._nested_complete and not _hides_processes()
        return Suspects(
            all_seen=all_seen and (_is_in_initial_namespace() or self._gateway_is_here(state_dir)),
            oldest_began_ms=self.began_ms(min(starts)) if starts else None,
        )

    def _may_make_guards(self, pid: int) -> bool:
        """Whether a process may be OpenClaw's or node's. The kernel's own threads are neither."""
        seen = self._look(pid)
        if seen.state in {HolderState.GONE, HolderState.ZOMBIE}:
            return False
        if seen.program is Program.OTHER:
            return _is_node(pid)
        return not _is_kernel_thread(pid)

    def _gateway_is_here(self, state_dir: tuple[int, int] | None) -> bool:
        """Whether a gateway that uses this state directory is visible in our own PID namespace."""
        nested = set((self._nested or {}).values())
        return state_dir is not None and any(
            self._look(pid).program is Program.GATEWAY
            and pid not in nested
            and self._state_dir(pid) == state_dir
            for pid in psutil.pids()
        )

    def began_ms(self, starttime: int) -> int:
        """Return when a process with this start time began, in epoch ms by the present clock.

        Both clocks are read at the same moment, so a slow pass does not make the process older.
        """
        return time.time_ns() // 1_000_000 - round(up_for(starttime) * 1000)

    def has_open(self, pid: int, path_end: str) -> bool | None:
        """Return whether a process has a file open whose path contains `path_end`; None if its
        descriptors cannot be read.

        Links are read but never followed, because a look at a file on a dead mount would hang.
        """
        folder = f"{psutil.PROCFS_PATH}/{pid}/fd"
        try:
            for name in os.listdir(folder):
                with suppress(FileNotFoundError):  # closed since it was listed
                    if path_end in os.readlink(f"{folder}/{name}"):
                        return True
        except OSError:
            return None
        return False


def starttime_of(pid: int) -> int | None:
    """Return a process's start time in ticks since boot; None if it is not available."""
    return _look(pid).starttime


def live_starttime(pid: int) -> int | None:
    """Return the start time of a visible live process; None for a zombie."""
    seen = _look(pid)
    return seen.starttime if seen.state is HolderState.SAME else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a process uses; `open_fds` is None if rights are missing."""

    resident_bytes: int
    open_fds: int | None


def use_of(pid: int) -> Use | None:
    """Return what a process uses; None if it is gone or cannot be looked at."""
    try:
        process = psutil.Process(pid)
        resident: int = process.memory_info().rss
    except (psutil.Error, OSError):
        return None
    try:
        fds: int | None = process.num_fds()
    except (psutil.Error, OSError):
        fds = None
    return Use(resident_bytes=resident, open_fds=fds)


def up_for(starttime: int) -> float:
    """Seconds since a start time in ticks since boot; never negative."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - starttime / _TICKS)


def _look(pid: int) -> _ProcessSnapshot:
    if pid > _PID_LIMIT:
        return _ProcessSnapshot(state=HolderState.UNKNOWN)  # too large for a system call
    if _kernel_says_gone(pid):  # true for most holders of stale locks
        return _GONE
    try:
        starttime = _start_ticks(pid)
        process = psutil.Process(pid)
        if process.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}:
            # With other threads, perhaps only its main thread has ended.
            dead = len(os.listdir(f"{psutil.PROCFS_PATH}/{pid}/task")) <= 1
            state = HolderState.ZOMBIE if dead else HolderState.UNKNOWN
            return _ProcessSnapshot(state=state, starttime=starttime)
        state = HolderState.REUSED if _is_thread_of_another(pid) else HolderState.SAME
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return _ProcessSnapshot(
            state=HolderState.GONE if _kernel_says_gone(pid) else HolderState.UNKNOWN
        )
    except (psutil.Error, OSError, ValueError):
        return _ProcessSnapshot(state=HolderState.UNKNOWN)
    return _ProcessSnapshot(state=state, starttime=starttime, program=_program(pid))


def _kernel_says_gone(pid: int) -> bool:
    """Whether the kernel says ESRCH. Nothing else counts: with hidepid, a live process of another
    uid looks gone to psutil.
    """
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


def _is_thread_of_another(pid: int) -> bool:
    """Whether the pid is only a thread id, because the process that had it as its pid is gone.

    Raises OSError if /proc does not show it, and ValueError if its text is not understood.
    """
    with open(f"{psutil.PROCFS_PATH}/{pid}/status", "rb") as status:
        leader = re.search(rb"^Tgid:\s+([0-9]+)$", status.read(64 * 1024), re.MULTILINE)
    if leader is None:
        raise ValueError("no Tgid in the status file")
    return int(leader[1]) != pid


def _start_ticks(pid: int) -> int:
    """Return field 22 of /proc/<pid>/stat, exactly, by psutil's public interface.

    create_time() adds the boot time to the ticks, and reads the boot time again on the first call
    for each Process object. If the boot time is the same before and after, subtracting it gives the
    ticks, whatever the clock does at other times.
    """
    for _ in range(_BOOT_TIME_TRIES):
        boot_time = psutil.boot_time()
        created = psutil.Process(pid).create_time()
        if psutil.boot_time() == boot_time:
            return round((created - boot_time) * _TICKS)
    raise ValueError("the boot time keeps changing")


def _program(pid: int) -> Program:
    """Recognise OpenClaw's programs as upstream does (`isOpenClawSessionOwnerArgv`), and by the
    process titles that it sets: `openclaw`, `openclaw-gateway`, `openclaw-<command>`.
    """
    try:
        arguments = psutil.Process(pid).cmdline()
    except (psutil.Error, OSError):
        return Program.UNKNOWN
    return program_of(arguments)


def _innermost_pid(pid: int) -> int | None:
    """Return the pid that a process has in its own, nested, PID namespace. None if it is in ours,
    or gone. Raises OSError if that cannot be read.
    """
    try:
        with open(f"{psutil.PROCFS_PATH}/{pid}/status", "rb") as status:
            text = status.read(64 * 1024)
    except (FileNotFoundError, ProcessLookupError):
        return None
    match = re.search(rb"^NSpid:((?:\s+[0-9]+)+)$", text, re.MULTILINE)
    pids = match[1].split() if match else []
    return int(pids[-1]) if len(pids) > 1 else None


_NODE: Final = frozenset({"node", "nodejs", "bun"})
_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC
"""The kernel's PROC_PID_INIT_INO."""
_KERNEL_THREAD: Final = 0x00200000
"""PF_KTHREAD among the flags in /proc/PID/stat."""


def _is_node(pid: int) -> bool:
    """Whether a program with another name is node: by its arguments or, if visible, its
    executable.
    """
    names: set[str] = set()
    with suppress(psutil.Error, OSError):
        names.update(os.path.basename(word) for word in psutil.Process(pid).cmdline()[:1])
    with suppress(OSError):
        file = os.readlink(f"{psutil.PROCFS_PATH}/{pid}/exe").removesuffix(" (deleted)")
        names.add(os.path.basename(file))
    return not _NODE.isdisjoint(names)


def _is_kernel_thread(pid: int) -> bool:
    """Whether the pid belongs to a kernel thread; False if it is not visible."""
    with (
        suppress(OSError, ValueError, IndexError),
        open(f"{psutil.PROCFS_PATH}/{pid}/stat", "rb") as stat,
    ):
        # After the name, which may hold anything: state, ppid, pgrp, session, tty, tpgid, flags.
        return bool(int(stat.read(64 * 1024).rpartition(b")")[2].split()[6]) & _KERNEL_THREAD)
    return False


def _is_in_initial_namespace() -> bool:
    """Whether our PID namespace is the top one, in which each process of this kernel has a pid."""
    with suppress(OSError):
        return os.stat(f"{psutil.PROCFS_PATH}/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE
    return False


def _hides_processes() -> bool:
    """Whether /proc hides some processes; True if that is not known."""
    try:
        with open(f"{psutil.PROCFS_PATH}/self/mountinfo", "rb") as mounts:
            lines = mounts.read().decode(errors="surrogateescape").splitlines()
    except OSError:
        return True
    found = [line for line in lines if f" {psutil.PROCFS_PATH} " in line and " - proc " in line]
    options = re.split(r"[ ,]", found[-1]) if found else ["hidepid"]
    return any(
        option.startswith("hidepid") and option not in {"hidepid=0", "hidepid=off"}
        for option in options
    )


def _state_dir_of(pid: int) -> tuple[int, int] | None:
    """Return the identity of the state directory that a gateway's environment names."""
    try:
        environment = psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return None
    for candidate in state_dir_candidates(environment):
        try:
            found = os.stat(f"{psutil.PROCFS_PATH}/{pid}/root{candidate}")
        except (OSError, ValueError):
            continue
        return found.st_dev, found.st_ino
    return None
