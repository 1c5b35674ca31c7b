"""A small chart: how many sessions were stuck in the last hour."""

from collections.abc import Sequence
from typing import Final

from reaper.reports.stuck_history import MINUTES
from reaper.web.html import Html, html, many

_HEIGHT: Final = 24
"""The chart's height, in the units of its view box; a minute is one unit wide."""


def chart(most: Sequence[int], *, is_old: bool = False) -> Html:
    """Return the chart with a caption. `most` has the highest number of stuck sessions in each
    minute, the latest last. Unknown minutes are blank. `is_old`: the latest minute is in the past.
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
    """Return one shape with a bar for each minute."""
    start = MINUTES - len(most)
    steps = (f"V{_HEIGHT - count * (_HEIGHT - 2) / highest:.4g}h1" for count in most)
    path = f"M{start} {_HEIGHT}{''.join(steps)}V{_HEIGHT}Z"
    return html('<path class="stuck" d="{path}"/>', path=path)
