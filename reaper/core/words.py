"""Text from outside, made fit to show."""


def printable(text: str) -> str:
    r"""Return the text on one line, with all that a terminal could act on as \xNN or \uNNNN."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )
