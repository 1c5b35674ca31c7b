"""`reaper demo`."""

import signal

import typer

from reaper.commands.console import EXIT_INTERRUPTED


def command() -> None:
    """Show the sidecar at work for 30 seconds, on locks of its own."""
    from rich.console import Console  # noqa: PLC0415

    from reaper import demo as it  # noqa: PLC0415
    from reaper.adapters import hold_proof  # noqa: PLC0415

    hold_proof.prepare()
    # Both clean up, also where a shell that runs this in the background has SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        it.run(Console())
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
