"""The error of this package."""


class CollectError(ValueError):
    """Sessions cannot be collected; the message has the reason and a remedy."""
