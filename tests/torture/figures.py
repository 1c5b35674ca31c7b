"""Figures of a long run, for docs/reliability.md."""

import json
import os


def note_figures(what: str, **figures: object) -> None:
    """Append a line to the file that $TORTURE_FIGURES names, as `make torture` sets it."""
    path = os.environ.get("TORTURE_FIGURES")
    if path:
        with open(path, "a") as file:
            file.write(f"{what}: {json.dumps(figures)}\n")
