"""The body of an error."""

from pydantic import BaseModel


class FieldError(BaseModel):
    """What is wrong with one field."""

    field: str
    """The field, `properties.device` for one inside another; `body` for the body as a whole."""
    message: str
    """What was expected."""
    code: str
    """Machine-readable name of what was expected."""


class Problem(BaseModel):
    """An error, after RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    """Stable name of the error."""
    errors: list[FieldError] | None = None
    """The fields at fault, where there are some."""
    request_id: str | None = None
    """Name under which the service logged the failure."""
