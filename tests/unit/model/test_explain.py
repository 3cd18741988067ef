"""Why a probability moved: the parts sum to the change, through the artifact, with every cell and base rate."""

from types import SimpleNamespace

import pytest
import torch
from support.artifacts import random_model, write_artifact
from support.event_strategies import ALL_SCOPES, random_session

from model.artifact import save
from model.base_rate import logit_shift
from model.events import Event
from model.explain import explain, group_of, probability_of
from model.predictor import load_predictor


@pytest.fixture(scope="module", params=["lstm", "feed-forward"])
def path(request, tmp_path_factory):
    made = tmp_path_factory.mktemp("explain") / "model.pt"
    save(random_model(hidden_size=8, layers=2, properties=ALL_SCOPES, calendar=True, cell=request.param), made)
    return made


@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_the_parts_sum_exactly_to_the_change_between_two_answers(path, length) -> None:
    predictor = load_predictor(path, state_dtype="float32")
    history = random_session(3, length)
    ((trace, _),) = predictor.traces([history])
    found = predictor.explain(history)
    assert probability_of(found.after) == pytest.approx(trace[-1], abs=1e-6)
    if length > 1:
        assert probability_of(found.before) == pytest.approx(trace[-2], abs=1e-6)
    parts = [found.repeat, *found.contributions]
    assert sum(part.log_odds for part in parts) == pytest.approx(found.after - found.before, abs=1e-12)
    change = probability_of(found.after) - probability_of(found.before)
    assert sum(part.probability for part in parts) == pytest.approx(change, abs=1e-12)
    assert predictor.explain(history) == found
    sizes = [abs(part.probability) for part in found.contributions]
    assert sizes == sorted(sizes, reverse=True)


def test_only_inputs_that_moved_contribute(path) -> None:
    predictor = load_predictor(path)
    name = predictor.manifest.event_names[0]
    history = [Event(name, 1_000, "a", "b", 5.0), Event(name, 61_000, "a", "b", 5.0)]
    groups = {one.group for one in predictor.explain(history).contributions}
    assert "time" in groups
    assert "cart" not in groups
    assert not any(group.startswith("property.") for group in groups)
    cart = [*history, Event("add_to_cart", 62_000, "a", "b", 5.0)]
    assert "cart" in {one.group for one in predictor.explain(cart).contributions}


def test_a_live_base_rate_shifts_both_ends_and_no_part(tmp_path) -> None:
    artifact = write_artifact(tmp_path / "model.pt", data={"base_rate": 0.1})
    one, other = (load_predictor(artifact, base_rate=rate).explain(random_session(3, 9)) for rate in (None, 0.3))
    shift = logit_shift(0.1, 0.3)
    assert (other.before - one.before, other.after - one.after) == pytest.approx((shift, shift), abs=1e-5)
    assert {part.group: part.log_odds for part in other.contributions} == pytest.approx(
        {part.group: part.log_odds for part in one.contributions}, abs=1e-5
    )


def test_every_feature_and_index_has_a_group(path) -> None:
    predictor = load_predictor(path)
    known = {"event", "time", "events", "item", "category", "price", "cart", "calendar"}
    groups = {name: group_of(name) for name in predictor.manifest.features}
    assert {group for group in groups.values() if not group.startswith("property.")} == known
    assert groups["recency[add_to_cart]"] == "cart"
    assert groups["log_price"] == "price"
    assert groups["log_gap"] == "time"
    assert {groups[name] for name in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")} == {"calendar"}
    assert {groups[f"{name}[add_to_cart]"] for name in ("log_count", "share", "recency")} == {"cart"}
    assert group_of("event_name") == "event"
    assert group_of("property.device") == "property.device"


@pytest.mark.parametrize("groups", [3, 9])
def test_inputs_that_act_in_pairs_share_what_they_do_together_evenly(groups) -> None:
    generator = torch.Generator().manual_seed(groups)
    asked = []

    def inputs(features, _indices):
        asked.append(len(features))
        return features

    alone, together = (torch.randn(size, generator=generator) for size in ((groups,), (groups, groups)))
    module = SimpleNamespace(
        encoder=SimpleNamespace(
            sequence=lambda times, codes, numbers: (
                torch.stack((torch.zeros(groups), torch.ones(groups)))[None],
                torch.zeros(1, 2, 0, dtype=torch.int64),
            )
        ),
        inputs=inputs,
        initial_state=lambda rows: (torch.zeros(rows, 1),),
        lstm=SimpleNamespace(step=lambda rows, hidden: (rows, hidden)),
        raw_logit=lambda output, rows: rows @ alone + ((rows @ together.triu(1)) * rows).sum(1),
        temperature=torch.tensor(1.0),
        bias=torch.tensor(0.0),
    )
    columns = (torch.tensor([0, 1]), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 2))
    names = [f"property.{number}" for number in range(groups)]

    found = {one.group: one.log_odds for one in explain(module, columns, features=names, indices=()).contributions}

    # Half of each pair, as each order of adding the inputs also runs backwards: the exact Shapley values.
    pairs = together.triu(1) + together.triu(1).T
    assert [found[name] for name in names] == pytest.approx((alone + pairs.sum(1) / 2).tolist(), abs=1e-5)
    # And of many inputs not every subset is asked for.
    assert max(asked) <= 1 + 32 * groups


def test_before_the_first_event_nothing_was_known(path) -> None:
    predictor = load_predictor(path)
    name = predictor.manifest.event_names[0]
    groups = {one.group for one in predictor.explain([Event(name, 1_000)]).contributions}
    assert groups.isdisjoint({"price", "item", "category", "cart"})
    assert not any(group.startswith("property.") for group in groups)
    with_price = {one.group for one in predictor.explain([Event(name, 1_000, price=0.0)]).contributions}
    assert with_price - groups == {"price"}
