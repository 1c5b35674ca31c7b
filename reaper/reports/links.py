"""Links to the project's documents."""

import os
from functools import cache
from typing import Final

import reaper

_METADATA: Final = os.path.join(
    os.path.dirname(reaper.__path__[0]),
    f"openclaw_lock_reaper-{reaper.__version__}.dist-info",
    "METADATA",
)
"""Read as a file, because importing importlib.metadata takes longer than explaining a lock."""
_FIELD: Final = "Project-URL: Documentation, "
_INDEX: Final = "/docs/README.md"


def runbook(anchor: str) -> str:
    """Return the link to a section of the runbook: an address if the project has one, else the path
    of the file in the project.
    """
    path = f"docs/runbook.md#{anchor}"
    address = _address(_METADATA)
    return f"{address}/{path}" if address else path


@cache
def _address(metadata: str) -> str:
    """Return the address of the project's files, as the installed metadata gives it; "" if it gives
    none, or if the program runs without being installed.
    """
    try:
        with open(metadata, encoding="utf-8") as file:
            for line in file:
                if line.startswith(_FIELD):
                    return line.removeprefix(_FIELD).strip().removesuffix(_INDEX)
    except OSError:
        pass
    return ""
