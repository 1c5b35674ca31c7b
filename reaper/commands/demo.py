"""`reaper demo`."""

import signal

import typer

from reaper.commands.console import EXIT_FAILED, EXIT_INTERRUPTED, Console
from reaper.commands.reporting import written_to_standard_output


def command() -> None:
    """Show the sidecar at work for 30 seconds, on locks of its own."""
    from rich.console import Console as RichConsole  # noqa: PLC0415

    from reaper.adapters import hold_proof  # noqa: PLC0415
    from reaper.demo import story  # noqa: PLC0415

    hold_proof.prepare()
    # Both clean up, even if a shell that runs this in the background ignores SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with written_to_standard_output(Console(quiet=False, verbose=False)):
            done = story.run(RichConsole())
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    raise typer.Exit(0 if done else EXIT_FAILED)
