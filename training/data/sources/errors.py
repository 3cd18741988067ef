"""The one error of this package."""


class SourceError(ValueError):
    """A log cannot be read as a whole: missing, empty, damaged, of an unknown format or without a needed column.

    Single malformed rows never raise; they are rejected and reported.
    """
