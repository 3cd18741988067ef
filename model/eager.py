"""The network as a module again, from an artifact: a warm start trains it on, `willbuy compile` exports it."""

from dataclasses import replace

import torch

from model.encoder import Encoder
from model.manifest import ArtifactCorruptError, Manifest
from model.network import FeatureScaling, SessionModel
from model.sizes import NetworkSizes


def eager_model(module: torch.jit.ScriptModule, manifest: Manifest) -> SessionModel:
    """Return the eager model of a script, with the same weights, buffers and calibration.

    Raises:
        ArtifactCorruptError: manifest and script are not of one model.
    """
    weights = module.state_dict()
    try:
        encoder = Encoder(
            manifest.event_names,
            manifest.item_categories,
            manifest.items,
            manifest.properties,
            manifest.property_values,
            calendar=manifest.calendar,
        )
        sizes = NetworkSizes(**manifest.sizes)
        features = len(encoder.feature_names)
        # Only the number and the features of the bins matter here; `load_state_dict` sets the values.
        seen = range(features) if sizes.aggregates else encoder.features_of_the_event()
        scaling = replace(
            FeatureScaling.identity(features),
            bin_feature=torch.tensor(seen)[weights["bin_feature"]],
            bin_low=weights["bin_low"],
            bin_width=weights["bin_width"],
        )
        model = SessionModel(encoder, sizes, scaling)
        model.load_state_dict({name: weight.clone() for name, weight in weights.items()})
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError) as exc:
        raise ArtifactCorruptError(f"manifest and script are not of one model: {exc}") from exc
    return model.eval()
