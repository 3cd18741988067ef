"""Builds `willbuy_client` from the service's own source, so that client and service have one.

`app.client` becomes the package, and `app.schemas` and what both need of `model` become packages inside of it.
"""

import re
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parents[2]
PACKAGE = "willbuy_client"
# Modules of the repository, and their places in the package.
SOURCES = {"app/client": "", "app/schemas": "schemas"}
SHARED = ("events", "text_rules")
RENAMED = (
    (re.compile(r"\bapp\.client\b"), PACKAGE),
    (re.compile(r"\bapp\.schemas\b"), f"{PACKAGE}.schemas"),
    (re.compile(rf"(?m)^from model\.(?={'|'.join(SHARED)}\b)"), f"from {PACKAGE}.model."),
)


class ClientSources(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own example has none
    """Adds the renamed modules to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the modules into a temporary folder that the wheel includes."""
        if version == "editable":
            raise ValueError("the client is installed from its wheel: the source is app/client")
        self._folder = Path(mkdtemp())
        files = {
            Path(target, path.name): path for source, target in SOURCES.items() for path in (ROOT / source).glob("*.py")
        }
        files |= {Path("model", f"{name}.py"): ROOT / f"model/{name}.py" for name in SHARED}
        for target, source in files.items():
            self._write(target, source.read_text("utf-8"))
        self._write(Path("model/__init__.py"), '"""What the bodies need of the model\'s rules."""\n')
        self._write(Path("py.typed"), "")
        build_data["force_include"][str(self._folder)] = PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - hatchling's call
        """Remove the folder."""
        shutil.rmtree(self._folder)

    def _write(self, target: Path, text: str) -> None:
        for old, new in RENAMED:
            text = old.sub(new, text)
        path = self._folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
