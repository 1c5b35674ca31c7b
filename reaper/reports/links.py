"""Links to the project's documents."""

from typing import Final

ADDRESS: Final = ""
"""Where the project's files can be read in a browser, without a slash at the end; empty as long as
the project has no address."""


def runbook(anchor: str) -> str:
    """Return the link to a section of the runbook: an address where the project has one, else the
    path of the file in the project.
    """
    path = f"docs/runbook.md#{anchor}"
    return f"{ADDRESS}/{path}" if ADDRESS else path
