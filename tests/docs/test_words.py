"""Plain technical English: no words of the old idiom, and no long sentences (CONTRIBUTING.md)."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Whether docstrings and comments are checked as well.
CODE_TOO = True
MOST_WORDS = 30
# Pages that are still to be rewritten.
PENDING: set[str] = set()
# Pattern to avoid: what to write instead.
AVOID = {
    r"foret(ell|old)\w*": "predict; pre-training by next-event prediction",
    r"taught": "trained on soft targets",
    r"(is|are|was|were|be|being|been) told": "receives; name the mechanism",
    r"(told|says?|said) of": "describes, contains",
    r"whoever": "name the role: the caller, the operator",
    r"nobody": "no caller, no replica",
    r"somebody": "a visitor, a caller",
    r"(goes|went|gone) by": "follows, uses, compares",
    r"(go|goes|went) on": "continues",
    r"stands? (in|at|beside|before|behind|under)": "is in, is before",
    r"stands? in for": "replaces",
    r"so to speak": "delete",
    r"outliv\w+": "remains after, expires later than",
    r"at hand": "available",
    r"in good order": "in order; valid",
    r"(on )?its way": "in progress; name the path",
    r"hears?": "receives",
    r"in one breath": "at once",
    r"lets? itself": "can be",
    r"it is no ": "it is not",
    r"of its own accord": "by itself",
    r"held against": "compared with",
    r"mend(s|ed|ing)?": "correct, repair",
}
_AVOID = re.compile(
    "|".join(rf"(?P<_{number}>\b(?:{pattern})\b)" for number, pattern in enumerate(AVOID)), re.IGNORECASE
)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_SENTENCE_END = re.compile(r"(?<=[.!?])[)*_\"]*\s+(?=[\"'(*_`\[]*[A-Z0-9`])")

ROOT_PAGES = {"README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md"}
PAGES = [
    *(ROOT / name for name in sorted(ROOT_PAGES - PENDING)),
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if not page.read_text().startswith("<!-- Generated")),
]
MODULES = (
    sorted(path for package in ("app", "model", "training") for path in (ROOT / package).rglob("*.py"))
    if CODE_TOO
    else []
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Yield each paragraph and list item of a page with its first line; no code, tables, headings or comments."""
    text = re.sub(r"<!--.*?-->", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL)
    lines: list[str] = []
    first = 0
    fenced = False
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        prose = not (fence or fenced or not line.strip() or line.startswith(("|", "#", "    ")))
        item = re.match(r"\s*([*+-]|\d+\.)\s+", line) if prose else None
        if lines and (not prose or item):
            yield first, " ".join(lines)
            lines = []
        if prose:
            first = first if lines else number
            lines.append(line[item.end() :] if item else line.strip())


def sentences(paragraph: str) -> list[str]:
    return _SENTENCE_END.split(_LINK.sub(r"\1", paragraph))


def words(sentence: str) -> int:
    """Return the number of words; code in backticks counts as one."""
    return sum(bool(re.search(r"\w", word)) for word in re.sub(r"`[^`]*`", "code", sentence).split())


def avoided(text: str) -> Iterator[str]:
    for found in _AVOID.finditer(" ".join(re.sub(r"`[^`]*`", "", text).split())):
        pattern = list(AVOID)[int((found.lastgroup or "_0").removeprefix("_"))]
        yield f"{found[0]!r}: {AVOID[pattern]}"


def spoken(source: str) -> Iterator[tuple[int, str]]:
    """Yield each docstring and each block of comments of a module with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
    block: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != last + 1:
                yield last, " ".join(block)
                block = []
            block.append(token.string.lstrip("#: "))
            last = token.start[0]
    yield last, " ".join(block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_in_plain_english(page: Path) -> None:
    text = page.read_text("utf-8")
    found = [f"{line}: {fault}" for line, one in paragraphs(text) for fault in avoided(one)]
    tables = (row for row in enumerate(text.splitlines(), start=1) if row[1].startswith("|"))
    found += [f"{line}: {fault}" for line, one in tables for fault in avoided(one)]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_sentence_of_a_page_is_short(page: Path) -> None:
    found = [
        f"{line}: {words(sentence)} words: {sentence}"
        for line, paragraph in paragraphs(page.read_text("utf-8"))
        for sentence in sentences(paragraph)
        if words(sentence) > MOST_WORDS
    ]
    assert found == []


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_docstrings_and_comments_are_in_plain_english(module: Path) -> None:
    found = [f"{line}: {fault}" for line, text in spoken(module.read_text("utf-8")) for fault in avoided(text)]
    assert found == []


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_page_that_a_module_names_exists(module: Path) -> None:
    named = set(re.findall(r"docs/[\w/-]+\.md", module.read_text("utf-8")))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_the_check_finds_words_and_long_sentences() -> None:
    text = "# Whoever\n\nThe caller\nis told. `whoever`\n\n* One. Two.\n\n```sh\nwhoever\n```\n\n    whoever\n"
    assert list(paragraphs(text)) == [(3, "The caller is told. `whoever`"), (6, "One. Two.")]
    assert [fault for _, one in paragraphs(text) for fault in avoided(one)] == [
        "'is told': receives; name the mechanism"
    ]
    assert sentences("A [link](a.md) ends. `Code` begins.") == ["A link ends.", "`Code` begins."]
    assert words("Three `a b c` words - here.") == 4
    assert list(spoken('"""Whoever."""\n# a\n# b\nx = 1  # c\n')) == [(1, "Whoever."), (4, "a b c")]
