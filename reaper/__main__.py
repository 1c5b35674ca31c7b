"""The start: `reaper`, and `python -m reaper`."""

import gc


def main() -> None:
    """Run the command that was asked for.

    Imports leave next to no garbage, and what they bring stays: looking for garbage there, now and
    at the end, would cost nearly as much as Python's own start.
    """
    gc.disable()
    from reaper.cli import app  # noqa: PLC0415  # not before

    gc.freeze()
    gc.enable()
    app()


if __name__ == "__main__":
    main()
