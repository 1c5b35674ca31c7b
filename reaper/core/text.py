"""Text from outside, made fit to show. `reaper probe` imports it, so it imports nothing."""

_SHOWN = 200
"""The most bytes that a sentence quotes. A log line quotes up to 300 bytes of a file."""


def printable(text: str) -> str:
    r"""Return the text on one line, with all that a terminal could act on as \xNN or \uNNNN."""
    if text.isprintable():  # nearly always; the loop below takes 50 times as long
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )


def beginning(text: str) -> str:
    """Return the text, printable, or only its beginning where it is long."""
    shown = printable(text).encode()
    return f"{shown[:_SHOWN].decode(errors='ignore')}{'...' if len(shown) > _SHOWN else ''}"
