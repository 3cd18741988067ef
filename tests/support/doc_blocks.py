"""The fenced blocks of a documentation page, and the page's instructions to its test.

HTML comments, which readers do not see, instruct the test, for the next block or for the whole page:

    <!-- needs: service, model.pt -->     what the page expects to exist before its first block
    <!-- not run: why -->                the next block is not run
    <!-- keeps running: 8000 -->         the next block is a server on that port, stopped at the end
    <!-- status: 3 -->                   the next block ends with this status

A block with a title (```` ```csv title="shop.csv" ````) is a file that the reader writes. A block of JSON or plain text
after a block that was run is the output of that block.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

COMMANDS: Final = ("bash", "sh")
PROGRAMS: Final = ("python", "js", "javascript", "php")
FILES: Final = ("csv", "toml", "json", "text")
ANSWERS: Final = ("json", "text")
_FENCE: Final = re.compile(r"^```(?P<language>[\w-]*)(?P<rest>.*)$")
_TITLE: Final = re.compile(r'title="([^"]+)"')
_DIRECTIVE: Final = re.compile(r"^<!-- (?P<name>needs|not run|keeps running|status)(?:: (?P<value>.+?))? -->$")


class PageError(ValueError):
    """The page has instructions that its test does not understand; the message names the line."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: language, file name if it is a file, text, line, and instructions."""

    language: str
    title: str | None
    text: str
    line: int
    not_run: str | None = None
    keeps_running: int | None = None
    status: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """A page's blocks in order, and its needs."""

    needs: tuple[str, ...]
    blocks: tuple[Block, ...]


def read_page(path: Path) -> Page:
    """Return a page's blocks.

    Raises:
        PageError: a block of an unknown kind, one without its end, or a comment to the test that belongs to none.
    """
    needs: list[str] = []
    blocks: list[Block] = []
    said: dict[str, str] = {}
    lines = iter(enumerate(path.read_text("utf-8").splitlines(), start=1))
    for number, line in lines:
        where = f"{path.name}:{number}"
        directive = _DIRECTIVE.match(line)
        if directive:
            name, value = directive["name"], directive["value"] or ""
            if name == "needs":
                needs += [one.strip() for one in value.split(",")]
            else:
                said[name] = value
        elif line.startswith("```"):
            blocks.append(_block(line, lines, said, where))
            said = {}
        elif said and line.strip():
            raise PageError(f"{where}: a block was expected after the comment to the test")
        elif line.startswith("<!--"):
            raise PageError(f"{where}: neither {_DIRECTIVE.pattern}")
        elif line.lstrip().startswith("```"):
            raise PageError(f"{where}: an indented block is never run")
        elif re.match(r"^( {4}|\t)\$? ?(willbuy|torchrun|python|curl|make) ", line):
            raise PageError(f"{where}: a command outside a fenced block is never run")
    if said:
        raise PageError(f"{path.name}: a block was expected after the last comment to the test")
    return Page(tuple(needs), tuple(blocks))


def _block(fence: str, lines: Iterator[tuple[int, str]], said: dict[str, str], where: str) -> Block:
    opened = _FENCE.match(fence)
    if opened is None:
        raise PageError(f"{where}: {fence} opens no block")
    text: list[str] = []
    for _, line in lines:
        if line.startswith("```"):
            break
        text.append(line + "\n")
    else:
        raise PageError(f"{where}: the block has no end")
    title = _TITLE.search(opened["rest"])
    block = Block(
        language=opened["language"],
        title=title and title[1],
        text="".join(text),
        line=int(where.rpartition(":")[2]),
        not_run=said.get("not run"),
        keeps_running=int(said["keeps running"]) if "keeps running" in said else None,
        status=int(said.get("status", 0)),
    )
    if "not run" in said and not (block.not_run or "").strip():
        raise PageError(f"{where}: 'not run' needs a reason")
    if block.language not in {*COMMANDS, *PROGRAMS, *FILES}:
        raise PageError(f"{where}: a block of kind {block.language!r} is never run; use one of the kinds that are")
    return block
