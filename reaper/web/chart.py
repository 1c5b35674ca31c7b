"""How many sessions were stuck in the last hour, as a small picture."""

from collections.abc import Sequence
from typing import Final

from reaper.reports.stuck_history import MINUTES
from reaper.web.html import Html, html, many

_HEIGHT: Final = 24
"""The picture's, in the units of its view box; one unit is as wide as a minute."""


def chart(most: Sequence[int], *, is_old: bool = False) -> Html:
    """Return the picture with a caption; `most` has the most that were stuck in each minute, the
    latest last. Minutes that are not known are left blank. `is_old`: the latest is not this one.
    """
    if not most:
        return Html()
    highest = max(most)
    span = "hour" if len(most) == MINUTES else many(len(most), "minute")
    when = f"{span} before that" if is_old else f"last {span}"
    what = f"at most {many(highest, 'session')} stuck" if highest else "none known to be stuck"
    caption = f"{when.capitalize()}: {what}"
    return html(
        '<figure class="{old}"><figcaption>{caption}</figcaption><svg role="img" '
        'aria-label="{caption}" viewBox="0 0 {width} {height}" '
        'preserveAspectRatio="none"><path class="known" d="M{start} {height}H{width}"/>{bars}</svg>'
        "</figure>",
        old="old" if is_old else "",
        caption=caption,
        width=MINUTES,
        height=_HEIGHT,
        start=MINUTES - len(most),
        bars=_bars(most, highest) if highest else Html(),
    )


def _bars(most: Sequence[int], highest: int) -> Html:
    """Return one shape: up and down by what each minute has."""
    start = MINUTES - len(most)
    steps = (f"V{_HEIGHT - count * (_HEIGHT - 2) / highest:.4g}h1" for count in most)
    path = f"M{start} {_HEIGHT}{''.join(steps)}V{_HEIGHT}Z"
    return html('<path class="stuck" d="{path}"/>', path=path)
