"""What the metadata says about the project's address.

The address is `PROJECT_URL` in the environment, as the release sets it. Without it there are no
links to the project, and README's links stay relative.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?\[[^]]*\]\()(?!\w+:|#)([^)]+)")
"""A link or picture of Markdown that is relative."""


class ProjectAddress(MetadataHookInterface):
    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the project's links, and README with links that work on PyPI too."""
        text = (Path(self.root) / "README.md").read_text()
        project = os.environ.get("PROJECT_URL", "").rstrip("/")
        if project:
            tag = f"v{metadata['version']}"
            metadata["urls"] = {
                "Homepage": project,
                "Documentation": f"{project}/blob/{tag}/docs/README.md",
                "Changelog": f"{project}/blob/{tag}/CHANGELOG.md",
                "Source": project,
                "Issues": f"{project}/issues",
            }

            def absolute(link: re.Match[str]) -> str:
                kind = "raw" if link[1].startswith("!") else "blob"
                return f"{link[1]}{project}/{kind}/{tag}/{link[2]}"

            text = _LINK.sub(absolute, text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
