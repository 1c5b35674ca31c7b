"""Figures of a long run, for docs/reliability.md."""

import json
import os


def note_figures(run: str, **figures: object) -> None:
    """Append a line to the file $TORTURE_FIGURES, which `make torture` sets."""
    path = os.environ.get("TORTURE_FIGURES")
    if path:
        with open(path, "a") as file:
            file.write(f"{run}: {json.dumps(figures)}\n")
