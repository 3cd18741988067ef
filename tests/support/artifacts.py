"""Small artifacts with random weights, for tests that need any model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model.artifact import manifest_of, save
from model.encoder import Encoder
from model.network import SessionModel
from model.properties import PropertySpec
from model.sizes import NetworkSizes

EVENT_NAMES = ("page_view", "view_item", "view_item_list", "search", "add_to_cart", "view_cart", "begin_checkout")
PROPERTIES = (
    PropertySpec("device", "category", "session"),
    PropertySpec("campaign", "category", "session"),
    PropertySpec("visits", "number", "session"),
)


def random_model(
    *,
    seed: int = 0,
    hidden_size: int = 8,
    layers: int = 1,
    event_names: Sequence[str] = EVENT_NAMES,
    properties: Sequence[PropertySpec] = PROPERTIES,
    calendar: bool = False,
    cell: str = "lstm",
    aggregates: bool = True,
) -> SessionModel:
    """Return a model whose answers vary strongly with the events."""
    encoder = Encoder(
        list(event_names),
        ["shoes", "hats"],
        ["SKU-1", "SKU-2"],
        list(properties),
        {spec.name: ["mobile", "desktop"] for spec in properties if spec.kind == "category"},
        calendar=calendar,
    )
    torch.manual_seed(seed)
    sizes = NetworkSizes(hidden_size=hidden_size, layers=layers, head_size=8, cell=cell, aggregates=aggregates)
    model = SessionModel(encoder, sizes)
    with torch.no_grad():
        model.logit.weight.mul_(4.0)
    return model.eval()


def write_artifact(
    path: Path,
    *,
    seed: int = 0,
    hidden_size: int = 8,
    layers: int = 1,
    event_names: Sequence[str] = EVENT_NAMES,
    properties: Sequence[PropertySpec] = PROPERTIES,
    calendar: bool = False,
    cell: str = "lstm",
    aggregates: bool = True,
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model as an artifact; each seed has a different fingerprint."""
    model = random_model(
        seed=seed,
        hidden_size=hidden_size,
        layers=layers,
        event_names=event_names,
        properties=properties,
        calendar=calendar,
        cell=cell,
        aggregates=aggregates,
    )
    save(model, path, manifest_of(model, data=data))
    return path
