"""Reports an exception that no system call raised: a bug in the reaper."""

import os
import traceback
from typing import Final

from reaper.core.finding import Skipped
from reaper.core.lock import LockKey

_FRAMES_SHOWN: Final = 5


def bug(path: str, error: Exception, key: LockKey | None = None) -> Skipped:
    """Report the error as a failure about one path, so that one agent's files do not stop the
    service for the others. The note says where, but not the error's text, which may quote a file.
    """
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_SHOWN:]
    where = " > ".join(
        f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames
    )
    note = f"a bug in the reaper, please report it: {type(error).__name__} at {where}"
    return Skipped(path=path, reason="error", failed=True, note=note, key=key)
