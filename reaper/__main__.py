"""The start: `reaper`, and `python -m reaper`."""

import gc
import os
import sys


def main() -> None:
    """Run the command that was asked for.

    Imports leave next to no garbage, and what they bring stays: looking for garbage there, now and
    at the end, would cost nearly as much as Python's own start.
    """
    gc.disable()
    if sys.argv[1:2] == ["probe"]:
        _probe()
    from reaper.cli import app  # noqa: PLC0415  # not before

    gc.freeze()
    gc.enable()
    app()


def _probe() -> None:
    """End the program with a probe's exit code, if it is one of the plain forms; containers run
    these every 30 seconds, and to import typer alone costs five times as much.
    """
    from reaper.web.client import plain_probe  # noqa: PLC0415  # not before

    gc.freeze()
    code = plain_probe(sys.argv[2:], os.environ)
    if code is not None:
        sys.exit(code)


if __name__ == "__main__":
    main()
