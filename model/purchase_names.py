"""Names that read like a purchase though no table knows them: for questions and warnings.

Nothing is read as a purchase because of its looks. `model.events.ALIASES` has the names that are.
"""

import re
from functools import lru_cache
from typing import Final

from model.events import GA4_EVENT_NAMES, canonical_event_name, folded

# A word that says enough.
_BOUGHT: Final = frozenset(
    [
        "purchase", "purchased", "purchases", "transaction", "transactions", "buy", "buys", "bought", "sale", "sales",
        "sold", "paid", "conversion", "kauf", "kaufen", "gekauft", "achat", "compra", "compras", "acquisto", "aankoop",
        "zakup", "nakup", "satinalma",
    ]
)  # fmt: skip
# Parts of words, and words of languages that do not part them.
_BOUGHT_PARTS: Final = (
    "purchase", "thankyou", "thank_you", "orderplaced", "ordercomplete", "orderconfirm", "ordersuccess", "orderpaid",
    "checkoutcomplete", "checkoutsuccess", "paymentsuccess", "paymentcomplete", "completedorder", "placedorder",
    "bestellbestätigung", "bestellbestaetigung", "kaufabschluss", "danke", "satin_al", "покупк", "оплач", "购买",
    "下单", "支付", "購入", "注文", "구매",
)  # fmt: skip
# Words that need one of `_DONE` beside them.
_ORDERS: Final = frozenset(
    [
        "order", "orders", "ordered", "checkout", "payment", "pay", "pedido", "commande", "bestellung", "bestelling",
        "ordine", "zamowienie", "zamówienie", "objednavka", "objednávka", "narudzba", "comanda", "siparis", "заказ",
    ]
)  # fmt: skip
_DONE: Final = frozenset(
    [
        "place", "placed", "complete", "completed", "completion", "confirm", "confirmed", "confirmation", "success",
        "successful", "succeeded", "done", "finish", "finished", "received", "receipt", "created", "create", "submit",
        "submitted", "ok", "thanks", "accepted", "approved", "validated", "abgeschlossen", "bestätigt", "erfolgreich",
        "termine", "terminee", "terminée", "confirmee", "confirmée", "confirmado", "realizado", "completado",
        "afgerond", "confermato", "оформлен",
    ]
)  # fmt: skip
_NOT_DONE: Final = frozenset(
    [
        "refund", "refunded", "refunds", "cancel", "canceled", "cancelled", "cancellation", "fail", "failed", "failure",
        "error", "declined", "denied", "abandon", "abandoned", "start", "started", "begin", "began", "initiate",
        "initiated", "history", "list", "wishlist", "return", "returned", "returns", "remove", "removed", "click",
        "clicked", "button", "intent", "view", "viewed", "update", "updated", "policy", "info", "guide", "flash",
        "storno", "step",
    ]
)  # fmt: skip
_NOT_DONE_PARTS: Final = ("add_to", "addto", "pre_order", "preorder", "on_sale", "for_sale", "sale_items", "how_to")
_WORDS: Final = re.compile(r"[^\W_]+")


@lru_cache(maxsize=4096)
def looks_like_purchase(name: str) -> bool:
    """Return whether a name is none that is known and reads like a purchase: `Order Paid`, `Danke`."""
    if canonical_event_name(name) in GA4_EVENT_NAMES:
        return False
    key = folded(name)
    words = frozenset(_WORDS.findall(key))
    if words & _NOT_DONE or any(part in key for part in _NOT_DONE_PARTS):
        return False
    is_order = bool(words & _ORDERS) and bool(words & _DONE)
    return is_order or bool(words & _BOUGHT) or any(part in key for part in _BOUGHT_PARTS)
