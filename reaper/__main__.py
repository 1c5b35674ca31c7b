"""The start: `reaper`, and `python -m reaper`."""

import gc
import os
import sys


def main() -> None:
    """Run the command.

    Imports leave almost no garbage, and what they load stays. Collecting garbage there, now and at
    the end, would cost almost as much as Python's own start.
    """
    gc.disable()
    if sys.argv[1:2] == ["probe"]:
        _probe()
    from reaper.cli import app  # noqa: PLC0415  # not before

    gc.freeze()
    gc.enable()
    app()


def _probe() -> None:
    """If this is a plain form of `probe`, run it and exit. Containers run these every 30 seconds,
    and importing typer alone costs five times as much.
    """
    from reaper.web.client import plain_probe  # noqa: PLC0415  # not before

    gc.freeze()
    code = plain_probe(sys.argv[2:], os.environ)
    if code is not None:
        sys.exit(code)


if __name__ == "__main__":
    main()
