"""The table of docs/metrics.md, from the code: names, types, labels and help texts.

    .venv/bin/python -m tests.metrics_reference

writes the table.
"""

import re
from pathlib import Path

from prometheus_client import Metric

from reaper.core.policy import Policy
from reaper.reports.inventory import LockInventory
from reaper.reports.metrics import Metrics

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
HEAD = "| metric | type | labels | what it says |\n|---|---|---|---|\n"


def _labels(family: Metric) -> list[str]:
    if family.samples:
        return [name for name in family.samples[0].labels if name != "le"]
    # A family without samples has the names of its labels only in a private attribute.
    return list(getattr(family, "_labelnames", ()))


def with_table(page: str) -> str:
    """Return the page with a new table."""
    metrics = Metrics(
        LockInventory(),
        version="1",
        states=["state"],
        policy=Policy(),
        acquire_timeout=60.0,
        now=lambda: 0.0,
        holder_use=lambda _pid: None,
        wedged=lambda: [("state", "1", True)],
    )
    rows = []
    for family in metrics.registry.collect():
        if family.name.startswith("process_"):
            continue  # metrics of prometheus_client
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(_labels(family))
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |\n")
    before, after = re.split(r"^(?:\|.*\n)+", page, maxsplit=1, flags=re.MULTILINE)
    return before + HEAD + "".join(rows) + after


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
