"""What tests need beyond Python, and how a run reports what is missing.

A skipped test names what is missing and the cure. The end of a run lists all of them. With
TESTS_COMPLETE=1, which `.ci/run` sets, a skipped test fails unless only another kernel would help
and `KERNEL_MAY_LACK` allows it.
"""

import os
import re
import shutil
from collections import Counter
from typing import Final, NoReturn

import pytest

PACKAGES: Final = {
    "bindfs": "bindfs",
    "cc": "gcc libc6-dev",
    "chromedriver": "chromium-driver",
    "chromium": "chromium",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.f2fs": "f2fs-tools",
    "mkfs.xfs": "xfsprogs",
    "npm": "npm",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "sshfs": "sshfs",
    "strace": "strace",
}
"""The Debian packages of the programs that tests use."""

KERNEL_MAY_LACK: Final = {
    "f2fs": "an optional module that many kernels are built without; no package brings it",
}
"""Features that no installation can add, and why. Their tests may skip everywhere."""

COMPLETE: Final = bool(os.environ.get("TESTS_COMPLETE"))
_INSTALL: Final = "apt-get install "
_KERNEL: Final = "another kernel: "


def program(name: str) -> str:
    """Return the path of a program; skip the test if it is not installed."""
    path = shutil.which(name)
    if path is None:
        missing(name, PACKAGES[name])
    return path


def missing(name: str, packages: str) -> NoReturn:
    not_tested(f"{name} is not installed", cure=_INSTALL + packages)


def kernel_lacks(feature: str, detail: str) -> NoReturn:
    not_tested(f"this kernel has no {feature} ({detail})", cure=_KERNEL + feature)


def not_tested(why: str, *, cure: str) -> NoReturn:
    """Skip the test, and say what would make it run."""
    pytest.skip(f"NOT TESTED: {why} [{cure}]")


def _reason(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ").removeprefix("NOT TESTED: ")


def _cure(reason: str) -> str:
    found = re.search(r"\[([^\[\]]*)\]$", reason)
    return found[1] if found else ""


def failed_if_skipped(report: pytest.TestReport) -> pytest.TestReport:
    """Turn a skip that is not allowed into a failure if everything must be tested."""
    if COMPLETE and report.skipped and not hasattr(report, "wasxfail"):
        cure = _cure(_reason(report))
        if cure.removeprefix(_KERNEL) not in KERNEL_MAY_LACK:
            report.outcome = "failed"
            report.longrepr = f"skipped where everything must be tested: {_reason(report)}"
    return report


def summarize(terminalreporter: pytest.TerminalReporter) -> None:
    """Write what was not tested, and what would change that."""
    write = terminalreporter.write_line
    reasons = Counter(_reason(skip) for skip in terminalreporter.stats.get("skipped", ()))
    if reasons:
        terminalreporter.section("NOT TESTED here", red=True, bold=True)
    for reason, count in sorted(reasons.items()):
        write(f"{count:4} {'test' if count == 1 else 'tests'}: {reason}")
    cures = {_cure(reason) for reason in reasons}
    packages = {part for cure in cures if cure.startswith(_INSTALL) for part in cure.split()[2:]}
    if packages:
        write(f"To test all that packages can cure: {_INSTALL}{' '.join(sorted(packages))}")
