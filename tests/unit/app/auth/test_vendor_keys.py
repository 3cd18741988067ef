"""Keys as vendors send them, in place of a header; what is left of the request is shown in logs."""

import base64
import hmac

import pytest

from app.auth.keys import ApiKey
from app.auth.scopes import Scope
from app.auth.vendors import key_headers, signature_of, signer_of
from app.errors import UnauthorizedError

GA4, SEGMENT, BATCH = "/v1/ingest/ga4", "/v1/ingest/segment", "/v1/events/batch"


def basic(text: str, scheme: str = "Basic") -> tuple[bytes, bytes]:
    return (b"authorization", f"{scheme} {base64.b64encode(text.encode()).decode()}".encode())


def sent(path, headers, query):
    """The headers by name, and the query, as the rest of the service has them."""
    found, left = key_headers(path, headers, query)
    return dict(found), left


OTHER = (b"accept", b"*/*")


@pytest.mark.parametrize(
    ("query", "left"),
    [
        (b"api_secret=wb_1", b""),
        (b"measurement_id=G-1&api_secret=wb_1", b"measurement_id=G-1"),
        (b"api_secret=wb_1&measurement_id=G-1&debug=", b"measurement_id=G-1&debug="),
        # The first one counts, and none of them is shown.
        (b"api_secret=wb_1&a=1&api_secret=wb_2", b"a=1"),
    ],
)
def test_the_secret_of_an_address_is_the_key_and_leaves_the_address(query, left):
    assert sent(GA4, [OTHER], query) == ({b"accept": b"*/*", b"x-api-key": b"wb_1"}, left)


@pytest.mark.parametrize("header", [(b"authorization", b"Bearer wb_2"), (b"x-api-key", b"wb_2")])
def test_a_keys_own_header_goes_before_the_address(header):
    assert sent(GA4, [OTHER, header], b"api_secret=wb_1") == (dict([OTHER, header]), b"")


@pytest.mark.parametrize("path", [SEGMENT, BATCH, "/v1/ingest/ga4/other"])
def test_elsewhere_an_address_has_no_key(path):
    assert sent(path, [OTHER], b"api_secret=wb_1") == (dict([OTHER]), b"api_secret=wb_1")


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
def test_the_password_is_the_key_and_may_have_colons(scheme):
    headers, query = sent(SEGMENT, [OTHER, basic("user:wb:1", scheme)], b"a=1")
    assert (headers, query) == ({b"accept": b"*/*", b"x-api-key": b"wb:1"}, b"a=1")


@pytest.mark.parametrize("header", [(b"authorization", b"Basic ?"), (b"authorization", b"Bearer wb_1")])
def test_what_is_no_password_stays(header):
    assert sent(SEGMENT, [header], b"") == (dict([header]), b"")


def test_elsewhere_a_password_is_no_key():
    assert sent(BATCH, [basic("user:wb_1")], b"") == (dict([basic("user:wb_1")]), b"")


def test_a_password_does_not_go_before_a_keys_own_header():
    headers = [basic("user:wb_1"), (b"x-api-key", b"wb_2")]
    assert sent(SEGMENT, headers, b"") == (dict(headers), b"")


def test_a_signature_counts_on_its_path_and_without_a_key():
    signed = (b"x-signature", b" ABCDEF ")
    assert signature_of(SEGMENT, [signed]) == b"abcdef"
    assert signature_of(GA4, [signed]) is None
    assert signature_of(BATCH, [signed]) is None
    assert signature_of(SEGMENT, []) is None
    for key in ((b"x-api-key", b"wb_1"), (b"authorization", b"Bearer wb_1")):
        assert signature_of(SEGMENT, [signed, key]) is None


KEYS = [
    ApiKey(name=name, sha256=f"{number}" * 64, scopes=[Scope.EVENTS_WRITE], segment_secret=f"secret-{name}")
    for number, name in enumerate(("first", "second", "third"))
]
TEXTS = (b'[{"a":1},{"a":2}]', b'{"a":1}')


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_the_key_whose_secret_signed_any_of_the_texts_is_the_signer(key, text):
    signature = hmac.digest(key.segment_secret.encode(), text, "sha1").hex().encode()
    assert signer_of(signature, TEXTS, KEYS) is key
    for texts, keys in ((TEXTS, [one for one in KEYS if one is not key]), ((b"other",), KEYS), ((), KEYS), (TEXTS, [])):
        with pytest.raises(UnauthorizedError):
            signer_of(signature, texts, keys)
