"""Repairs what an interrupted removal left behind."""

from collections.abc import Iterator
from typing import Final

from reaper.adapters.locks import names, reading, removal
from reaper.adapters.locks.reading import Folder, Leftover, OpenLock
from reaper.core.evidence import HoldProof
from reaper.core.finding import Mode, Skipped
from reaper.core.lock import LOCK_SUFFIX, Shape
from reaper.core.other_locks import GUARD_SUFFIX
from reaper.core.policy import Outcome
from reaper.sweep.evidence import EvidenceCollector
from reaper.sweep.plan import LEFTOVER

_DELETED: Final = {
    Outcome.REMOVED: "deleted",
    Outcome.VANISHED: "already gone",
    Outcome.CHANGED: "replaced by another file",
}
_NO_FILE: Final = frozenset({"not-regular", "symlink"})
"""The reasons of skipped things that are no leftovers, because no removal leaves such things."""
_INTERRUPTED_NOTE: Final = (
    "a removal was interrupted here; a sweep puts the lock back and judges it"
)


def settle_leftovers(folder: Folder, mode: Mode, collector: EvidenceCollector) -> Iterator[Skipped]:
    """Give each lock under a private name its own name back, and add that name to `folder.locks`.
    Delete an empty file, or a lock that finds its name taken, if no process has it open. Yield what
    was deleted, and what is left.
    """
    for name in folder.parked:
        if mode is not Mode.ACT:
            path = f"{folder.path}/{name}"
            yield Skipped(path=path, reason=LEFTOVER, failed=True, note=_INTERRUPTED_NOTE)
            continue
        is_guard = names.original_name(name).endswith(GUARD_SUFFIX)
        opened = (reading.open_guard if is_guard else reading.open_lock)(folder, name)
        if isinstance(opened, Skipped) and opened.reason not in _NO_FILE:
            yield opened
        elif isinstance(opened, OpenLock):
            with opened:
                left = _settle(opened, collector)
            if left is not None:
                yield left


def _settle(opened: OpenLock, collector: EvidenceCollector) -> Skipped | None:
    """Return what to report about one leftover, None if its lock has its name back."""
    folder, name = opened.folder, opened.name
    proof = collector.proof_of_leftover(opened)
    if proof is None:
        return None
    note = ""
    if opened.lock.record.shape is not Shape.EMPTY or proof is not HoldProof.NOT_OPEN:
        back = removal.put_back(folder, name)
        if back.outcome is Outcome.RESTORED:
            original = names.original_name(name)
            if folder.places or original.endswith(LOCK_SUFFIX):
                folder.locks.append(original)
            return None
        note = back.note
    failed = True
    if proof is HoldProof.NOT_OPEN:
        dropped = removal.drop_parked(opened)
        failed = dropped.outcome is Outcome.FAILED
        if failed:
            folder.leftover = Leftover(name, opened.lock.file)
        note = f"cannot be deleted: {dropped.note}" if failed else _DELETED[dropped.outcome]
    return Skipped(path=opened.lock.path, reason=LEFTOVER, failed=failed, note=note)
