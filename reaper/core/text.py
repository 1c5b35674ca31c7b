"""Text from outside, made fit to show."""


def printable(text: str) -> str:
    r"""Return the text on one line, with all that a terminal could act on as \xNN or \uNNNN."""
    if text.isprintable():  # as good as always; character by character costs 50 times as much
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )
