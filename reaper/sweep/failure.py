"""Reports an error about one path as a failure, so that the pass goes on."""

import os
import traceback
from typing import Final

from reaper.adapters.locks import reading
from reaper.core.finding import Skipped
from reaper.core.lock import LockKey

_FRAMES_SHOWN: Final = 5


def failure(path: str, error: Exception, key: LockKey | None = None) -> Skipped:
    """Report the error, so that one agent's files do not stop the service for the others.

    An error of the system comes with advice. Any other error is a bug in the reaper: the note says
    where it was raised, but not the error's text, which may quote a file.
    """
    if isinstance(error, OSError):
        return reading.skip(path, error)._replace(key=key)
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_SHOWN:]
    where = " > ".join(
        f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames
    )
    note = f"a bug in the reaper, please report it: {type(error).__name__} at {where}"
    return Skipped(path=path, reason="error", failed=True, note=note, key=key)
