"""HTML from values. Only this module escapes values."""

import time
from collections.abc import Iterable, Mapping
from html import escape
from typing import Final

from reaper.core.lock import iso
from reaper.core.text import printable


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


_NEW_LINE: Final = Html("\n")


def escaped(values: Mapping[str, object]) -> dict[str, str]:
    """Return the values as HTML; escape those that are not `Html`."""
    return {
        name: value if isinstance(value, Html) else escape(printable(str(value)))
        for name, value in values.items()
    }


def html(template: str, **values: object) -> Html:
    """Return the template (HTML with names in braces) with the escaped values."""
    return Html(template.format(**escaped(values)))


def joined(parts: Iterable[Html], between: Html = _NEW_LINE) -> Html:
    return Html(between.join(parts))


def paragraphs(lines: Iterable[object]) -> Html:
    return joined(html("<p>{line}</p>", line=line) for line in lines)


def moment(at_ms: int) -> Html:
    """Return a moment (epoch ms) as `10:29:15 UTC`, with the date if it is not today. The page's
    script converts it to local time.
    """
    text = iso(at_ms)
    if not text.endswith("Z"):  # a year that datetime does not support
        return html("{text}", text=text)
    today = iso(time.time_ns() // 1_000_000)[:10]
    shown = text[11:19] if text[:10] == today else f"{text[:10]} {text[11:19]}"
    return html('<time datetime="{iso}">{shown} UTC</time>', iso=text, shown=shown)


def breakable(text: str, after: str) -> Html:
    """Return the text; lines break only `after` this separator."""
    parts = (html("{part}", part=part) for part in text.split(after))
    return joined(parts, html("{after}<wbr>", after=after))


def word(text: str) -> Html:
    """Return a name or an id that does not break across lines."""
    return html('<code class="word">{text}</code>', text=text)


def command(text: str) -> Html:
    """Return a command to copy; one click selects all of it."""
    words = joined(
        (html('<span class="word">{word}</span>', word=part) for part in text.split(" ")), Html(" ")
    )
    return html('<code class="command">{words}</code>', words=words)


def capital(text: str) -> str:
    """Return the text with a capital as its first letter; the rest stays, unlike `capitalize`."""
    return f"{text[:1].upper()}{text[1:]}"


def many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
