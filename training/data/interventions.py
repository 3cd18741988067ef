"""Sessions in which a rule of the service decided, in a collected log, and what training does about them.

`willbuy collect` writes two kinds of properties. `willbuy.interventions` names all decisions of a session, as
`chat=treatment voucher=control`, in each of its rows; it knows the future, so it is never an input.
`willbuy.intervention.<rule>` has the group from the event after the decision on, and can be an input.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from model.properties import PropertySpec
from training.config import Interventions
from training.data.index import SessionIndex
from training.data.prepared import PreparedDataset

ALL: Final = "willbuy.interventions"
"""The property that names all decisions of a session."""
OF_RULE: Final = "willbuy.intervention."
"""Beginning of the properties that have a session's group from the event after the decision on."""
_TREATED: Final = "=treatment"
_CONTROL: Final = "=control"


def possible_inputs(properties: Sequence[PropertySpec], interventions: Interventions) -> list[PropertySpec]:
    """Return the properties that a model may see: of the decisions' only the groups, and these only if chosen."""
    return [
        spec
        for spec in properties
        if spec.name != ALL and (interventions == "property" or not spec.name.startswith(OF_RULE))
    ]


def leave_out(index: SessionIndex, dataset: PreparedDataset, interventions: Interventions) -> list[str]:
    """Take treated sessions out of all parts if that is chosen; return what was done, for the user.

    Args:
        index: the sessions; its `part` is changed.
        dataset: where they come from.
        interventions: what is chosen.
    """
    if ALL not in {spec.name for spec in dataset.properties}:
        return []
    treated, held = _decided(dataset)
    if not (treated.any() or held.any()):
        return []
    text = (
        f"rules treated {int(treated.sum()):,} of {len(treated):,} sessions and held {int(held.sum()):,} out as control"
    )
    if interventions == "leave-out":
        index.part[treated] = -1
        return [f"{text}; the treated ones are left out of all parts"]
    if interventions == "property":
        return [f"{text}; the group is an input: send willbuy.intervention.NAME in `properties` after each decision"]
    return [f"{text}; all are kept and the group is no input; --interventions leave-out, or property, changes that"]


def _decided(dataset: PreparedDataset) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return bool [S] twice: sessions that a rule treated; others in which a rule held out."""
    texts = []
    for shard in dataset.shards:
        rows = pl.read_parquet(shard, columns=["session_id", f"property.{ALL}"])
        is_first = (pl.col("session_id") != pl.col("session_id").shift(1)).fill_null(value=True)
        texts.append(rows.filter(is_first)[f"property.{ALL}"].cast(pl.String).fill_null(""))
    decided = pl.concat(texts)
    treated = decided.str.contains(_TREATED, literal=True).to_numpy()
    held = decided.str.contains(_CONTROL, literal=True).to_numpy()
    return treated, held & ~treated
