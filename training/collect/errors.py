"""What collecting may fail with."""


class CollectError(ValueError):
    """Sessions cannot be collected; the message says why and what to do."""
