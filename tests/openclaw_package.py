"""The real gateway from npm, installed once into a cache folder that all runs share."""

import fcntl
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

VERSION = "2026.5.22"
"""The release in the original bug report."""
LATER = "2026.6.11"
"""A release that replaces its trajectory at the end of each attempt."""
NEWEST = "2026.9.6"
"""A release without session locks; it reclaims its other locks under a guard."""
NODE_VERSION = "24.16.0"
_INSTALL_SECONDS = 600


@dataclass(frozen=True, slots=True)
class OpenClaw:
    node: Path
    package: Path

    @property
    def lock_module(self) -> Path:
        """The distributed chunk that exports `acquireSessionWriteLock` by name."""
        for chunk in sorted((self.package / "dist").glob("session-write-lock-*.js")):
            if re.search(r"export \{.*\bacquireSessionWriteLock,", chunk.read_text()):
                return chunk
        raise LookupError(f"no lock module in {self.package}/dist")


class Unavailable(Exception):  # noqa: N818  # a state of the machine, not an error
    """The package is not available on this machine; the text says why."""


def cache() -> Path:
    """Return the folder that all runs share; create it if necessary."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openclaw-lock-reaper"
    root.mkdir(parents=True, exist_ok=True)
    return root


def install(version: str = VERSION) -> OpenClaw:
    """Return a release; fetch it if the cache does not have it. Raises Unavailable."""
    root = cache()
    arch = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    node = f"node-linux-{arch}"
    with (root / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        npm_install(root / "node", f"{node}@{NODE_VERSION}")
        npm_install(root / version, f"openclaw@{version}")
    return OpenClaw(
        node=root / "node" / "node_modules" / node / "bin" / "node",
        package=root / version / "node_modules" / "openclaw",
    )


def npm_install(folder: Path, package: str) -> None:
    """Install a package into its own folder, once. Raises Unavailable."""
    if (folder / ".done").exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not installed")
    folder.mkdir(exist_ok=True)
    (folder / "package.json").write_text('{"private": true}\n')
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", package]
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, timeout=_INSTALL_SECONDS
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        detail = (error.stderr or b"").decode(errors="replace")[-300:]
        raise Unavailable(f"npm cannot install {package}: {error}: {detail}") from error
    (folder / ".done").touch()
