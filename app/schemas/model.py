"""Body of `GET /v1/model`."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


class ModelOut(BaseModel):
    """The model in use, and its manifest."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())

    fingerprint: str
    """Name of the model in answers."""
    loaded_at: datetime
    """When the replica loaded it."""
    device: str
    """Where it runs."""
    engine: str
    """How it runs: `torchscript` or `compiled`."""
    engine_reason: str
    """Why."""
    state_dtype: str
    """Type of the stored states."""
    state_bytes: int
    """Size of a stored state."""
    base_rate: float | None
    """Share of buyers that the probabilities are shifted to; null: as trained."""
    access: str
    """`open`, or `keys` where requests need an API key."""
    manifest: dict[str, Any]
    """The artifact's manifest; of long vocabularies only the sizes."""
