"""The one text of a value, and texts that stand for nothing: read alike in logs and in requests.

`canonical_text` decides which texts are the same item, category or property value. `willbuy prepare` applies the rule
to logs and `model.columns` applies the rule to events, so that a log's `True` and a request's `true` are one value.
"""

import math
import re
import unicodedata
from typing import Final

# The version of these rules; an artifact records the one that its training data followed. 1: no word for nothing was
# known, texts were not normalised, and characters of no width counted inside of a text.
TEXT_RULES: Final = 2

# White space of Unicode, the byte order mark, zero bytes, and characters of no width that exporters leave behind.
BLANKS: Final = (
    "\0\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0"
    "\u1680\u180e\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
)
_BLANK: Final = "[" + "".join(f"\\x{{{ord(blank):x}}}" for blank in BLANKS) + "]"
# Characters that no one sees: soft hyphen, zero-width space, word joiner, marks of byte order and direction.
_UNSEEN: Final = "\u00ad\u200b\u200e\u200f\u2060\ufeff"
_WITHOUT_UNSEEN: Final = dict.fromkeys(map(ord, _UNSEEN))
# Texts of characters before this one are in Unicode's normal form C.
_FIRST_COMBINING: Final = "\u0300"
# Words that programs write where a category has no value, in lower case. `0`, `unknown` and `(none)` are values.
NULL_WORDS: Final = frozenset(
    {
        "null", "(null)", "<null>", "[null]", "none", "nan", "nat", "nil", "<nil>", "undefined", "<na>", "na", "n/a",
        "n.a.", "#n/a", "#value!", "#ref!", "#null!", "\\n", "__hive_default_partition__", "(not set)", "not set",
        "not_set", "notset", "(empty)", "[object object]", "-", "--", "---", "\u2013", "\u2014", "?", "''", '""', "{}",
        "[]",
    }
)  # fmt: skip
_LONGEST_NULL: Final = max(map(len, NULL_WORDS))
# As expressions of Rust's regex crate, which polars uses: texts that `canonical_text`, or `category_text`, may change.
MAY_CHANGE: Final = (
    rf"^{_BLANK}|{_BLANK}$|^$|^-?[0-9]+\.0*$|^-0$|^(?i:true|false)$"
    rf"|\x{{ad}}|[^\x00-\x{{{ord(_FIRST_COMBINING) - 1:x}}}]"
)
MAY_BE_NULL: Final = f"{MAY_CHANGE}|^(?i:{'|'.join(re.escape(word) for word in sorted(NULL_WORDS))})$"
_WHOLE: Final = re.compile(r"(-?[0-9]+)\.0*", re.ASCII)
# C0 controls (NUL, line breaks, tabs), DEL, C1 controls, and surrogates, which UTF-8 cannot encode.
_FORBIDDEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TRUTHS: Final = frozenset({"true", "false"})
_LONGEST_TRUTH: Final = 5

# ISO 4217, currencies in use.
_CURRENCIES: Final = frozenset(
    """
    AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE
    CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD
    HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD
    MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR
    RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH
    UGX USD UYI UYU UYW UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
    """.split()  # noqa: SIM905  # a list would take a page
)

# Texts that programs write where there is no id, in lower case. `0` is missing: many logs count their ids from 0.
PLACEHOLDER_IDS: Final = frozenset(
    {
        # JavaScript, Java, Python, pandas, R, Go, Ruby
        "undefined", "null", "(null)", "nan", "nat", "none", "nil", "<nil>", "void", "<na>", "na", "n/a", "n.a.",
        "#n/a",        "true", "false", "[object object]", "nullnull", "undefinedundefined",
        # databases and Hadoop
        "\\n", "__hive_default_partition__", "<null>", "[null]",
        # Google Analytics, other tools and people
        "(not set)", "not set", "not_set", "notset", "(none)", "(empty)", "(unknown)", "unknown", "anonymous",
        "(other)", "empty", "blank", "missing", "not available", "unavailable", "guest",
        "-", "--", "---", "_", ".", "?", "*",
        "''", '""', "{}", "[]",
        # ids without a bit, or of ones only: what devices send where tracking is refused
        "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "00000000000000000000000000000000", "-1",
    }
)  # fmt: skip
# Beginnings of templates that a tag manager did not fill in: `{{client_id}}`, `${session}`, `%%SESSION%%`, `<%= id %>`.
_TEMPLATES: Final = ("{{", "${", "%%", "<%")


def stripped(text: str) -> str:
    """Return the text without blanks at its ends, `BLANKS` among them."""
    return text.strip(BLANKS)


def canonical_text(value: str | float | bool | None) -> str | None:
    """Return the one text of a value; None where there is none.

    Blanks at the ends go, and characters that no one sees. Letters are in normal form C, so that an accent is a part of
    its letter. Truth values are `true` and `false`. A whole number has no fraction: `12.0` is `12`. Any other text is
    kept, since `007` is not `7`.
    """
    if isinstance(value, str):
        text = value.strip(BLANKS)
        return _canonical(text if text.isascii() else _seen(text))
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if math.isnan(value):
        return None
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def session_id_text(text: str) -> str:
    """Return the one text of a session's id: its canonical text, or blanks as they are, which stand for no id."""
    return canonical_text(text) or text


def currency_code(text: str) -> str | None:
    """Return the ISO 4217 code that a text is, in upper case; None: it is none."""
    code = (canonical_text(text) or "").upper()
    return code if code in _CURRENCIES else None


def category_text(value: str | float | bool | None) -> str | None:
    """Return the one text of a category's or a property's value; None where there is none or a word for none."""
    text = canonical_text(value)
    return None if text is None or is_null_word(text) else text


def is_null_word(text: str) -> bool:
    """Return whether a canonical text is a word for no value, such as `None`, `N/A` or `-`."""
    return len(text) <= _LONGEST_NULL and text.lower() in NULL_WORDS


def _seen(text: str) -> str:
    return unicodedata.normalize("NFC", text.translate(_WITHOUT_UNSEEN)).strip(BLANKS)


def _canonical(text: str) -> str | None:
    if text.endswith(("0", ".")):
        whole = _WHOLE.fullmatch(text)
        text = whole[1] if whole else text
        return "0" if text == "-0" else text
    if len(text) <= _LONGEST_TRUTH and text.lower() in _TRUTHS:
        return text.lower()
    return text or None


def is_placeholder_id(text: str) -> bool:
    """Return whether an id stands for nothing, such as `undefined`, `(not set)` or blanks only."""
    text = text.strip(BLANKS)
    lowered = (text if text.isascii() else _seen(text)).lower()
    return not lowered or lowered in PLACEHOLDER_IDS or lowered.startswith(_TEMPLATES)


def has_forbidden_character(text: str) -> bool:
    """Return whether a text has a control character or a surrogate, which no text of an event may have."""
    # Nearly every text is printable, and that check takes a third of the search's time.
    return not text.isprintable() and _FORBIDDEN.search(text) is not None
