"""The text of `reference/event-names.md`: the event names that every model knows."""

from typing import Final

from model.events import ALIASES, GA4_EVENT_NAMES

_INTRODUCTION: Final = """# Event names

Event names are those of Google Analytics 4. The names of Segment, RudderStack and Google Retail are accepted as
aliases. So are the documented names of a purchase in other systems and public logs. Case, spaces, hyphens and
underscores do not matter: `Product Viewed`, `detail-page-view`, `View_Item` and `ViewItem` all mean `view_item`.

Any other name is a page type of the shop. The model's vocabulary holds the names that were frequent in the training
log. Every other name becomes "other", and `willbuy_unseen_names_total` counts it. `purchase` closes the session.

| name | aliases |
|---|---|
"""


def page() -> str:
    """Return the Markdown of all names with their aliases."""
    rows = []
    for name in sorted(GA4_EVENT_NAMES):
        aliases = sorted(alias for alias, canonical in ALIASES.items() if canonical == name)
        rows.append(f"| `{name}` | {', '.join(f'`{alias}`' for alias in aliases)} |")
    return _INTRODUCTION + "\n".join(rows) + "\n"
