"""Before and after the cart, known and unseen items: each event by hand."""

import numpy as np
import pytest

from model.columns import fingerprint
from model.events import Event
from training.evaluation.slices import cart_seen, items_of, slices_of

SESSIONS = [
    [Event("view_item", 0, "A"), Event("add_to_cart", 1, "A"), Event("view_item", 2, "B"), Event("page_view", 3)],
    [Event("page_view", 0), Event("view_item", 1, "C")],
    [Event("add_to_cart", 0, "A"), Event("remove_from_cart", 1, "A")],
]


def test_the_cart_counts_from_its_own_event_on_and_within_the_session(columns_of) -> None:
    seen = cart_seen(columns_of(SESSIONS, [1, 0, 0]))
    assert seen.tolist() == [False, True, True, True, False, False, True, True]


@pytest.mark.parametrize("as_names", [True, False])
def test_the_item_of_a_prefix_is_the_one_its_last_event_shows(columns_of, as_names) -> None:
    known = ["A", "B"] if as_names else np.array([fingerprint("A"), fingerprint("B")])
    found = slices_of(columns_of(SESSIONS, [1, 0, 0]), known)
    assert {heading: list(parts) for heading, parts in found.items()} == {
        "cart": ["before the first add to cart", "after the first add to cart"],
        "item": ["an item that training had", "an unseen item"],
    }
    had, unseen = found["item"].values()
    assert had.tolist() == [True, True, True, False, False, False, True, True]
    assert unseen.tolist() == [False, False, False, False, False, True, False, False]


def test_what_the_log_does_not_have_makes_no_slice(columns_of) -> None:
    assert slices_of(columns_of([[Event("page_view", 0)]], [0]), []) == {}


def test_items_of_sessions_are_their_fingerprints(columns_of) -> None:
    found = items_of(columns_of(SESSIONS, [1, 0, 0])).tolist()
    assert sorted(found) == sorted([0, *(fingerprint(item) for item in "ABC")])
