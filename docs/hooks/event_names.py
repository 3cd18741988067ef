"""Adds `reference/event-names.md`: the names that every model understands, made from the table in the code."""

from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from model.events import ALIASES, GA4_EVENT_NAMES

_INTRODUCTION: Final = """# Event names

Names are those of Google Analytics 4. Those of Segment, RudderStack and Google Retail are understood as well. Case,
spaces, hyphens and underscores do not matter in any of them: `Product Viewed`, `detail-page-view` and `View_Item` are
`view_item`.

Any other name is a page type of the shop's own. Those of the training log that were frequent are known to the model by
name; others count as "other", and `willbuy_unseen_names_total` counts them. `purchase` closes the session.

| name | also |
|---|---|
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, "reference/event-names.md", content=page()))
    return files


def page() -> str:
    """Return the Markdown of all names with their aliases."""
    rows = []
    for name in sorted(GA4_EVENT_NAMES):
        aliases = sorted(alias for alias, canonical in ALIASES.items() if canonical == name)
        rows.append(f"| `{name}` | {', '.join(f'`{alias}`' for alias in aliases)} |")
    return _INTRODUCTION + "\n".join(rows) + "\n"
