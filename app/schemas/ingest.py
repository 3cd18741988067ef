"""Bodies of `/v1/ingest`."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class RejectedOut(BaseModel):
    """A record of a request that could not become an event."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"title": "Rejected"})

    index: int
    """Its place among the records of the request, from 0."""
    code: str
    """Stable name of the problem."""
    detail: str
    """What is wrong."""


class IngestOut(BaseModel):
    """What became of the records of a request."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"title": "Ingest"})

    accepted: int
    """Events that are stored."""
    duplicates: int
    """Events that were stored before."""
    ignored: int
    """Records that are no events, such as `identify`."""
    rejected: int
    """Records that could not become events. Sending them again cannot help."""
    rejects: list[RejectedOut]
    """The first of those; `GET /v1/ingest/rejects` has their records."""


class RejectOut(BaseModel):
    """A record that could not become an event."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"title": "Reject"})

    vendor: str
    """Whose it is."""
    rejected: datetime
    """Server's clock."""
    code: str
    """Stable name of the problem."""
    detail: str
    """What is wrong."""
    record: str
    """The beginning of the record, as JSON."""


class RejectsOut(BaseModel):
    """The last records that could not become events."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"title": "Rejects"})

    rejects: list[RejectOut]
    """Latest first; of one request at most five, of all the last hundred of a day."""
