"""Runs a documentation page as its reader would: writes files, runs commands and starts programs, in order.

All blocks share one folder and one environment, so that exports and files of a block exist for the next. Changes: the
service and Redis listen on free ports, training uses less data and fewer epochs, and time-outs are longer. A block with
only training commands of `willbuy` runs in the test's process, because loading torch, polars and matplotlib takes
longer than most of them.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from typer.testing import CliRunner

from support.doc_blocks import ANSWERS, COMMANDS, FILES, PROGRAMS, Block, PageError
from support.patience import service_environment
from support.redis_servers import free_port
from training.cli import cli

# What a page does on a scale that takes a while.
SMALLER: Final = {
    "willbuy train ": "willbuy train --epochs 1 --no-lightgbm --set pretraining.epochs=0 --set fit.teacher_weight=0 ",
    "willbuy evaluate ": "willbuy evaluate --bootstrap 20 --baseline-sessions 200 ",
    "willbuy replay ": "willbuy replay --url http://127.0.0.1:8000 ",
    "willbuy compare ": "willbuy compare --bootstrap 100 ",
}
# Time-outs of programs: nothing here is about speed, and the machine may be busy.
_PATIENT: Final = {
    r"DEADLINE_S = [\d.]+": "DEADLINE_S = 60.0",
    r"\{ apiKey: process": "{ deadlineMs: 60_000, apiKey: process",
    r'Client\("http://127\.0\.0\.1:8000"\)': 'Client("http://127.0.0.1:8000", deadline_s=60)',
}
# Ports of what pages start beside the service and Redis.
_OTHER_PORTS: Final = (6380, 8001)
_SESSIONS: Final = re.compile(r"(willbuy synthesize .*--sessions )\d+")
_NUMBER: Final = re.compile(r"\d+(?:[.,:]\d+)*")
_PROGRAM: Final = {
    "python": ("snippet.py", "python"),
    "js": ("snippet.mjs", "node"),
    "javascript": ("snippet.mjs", "node"),
    "php": ("snippet.php", "php"),
}
_DEADLINE_S: Final = 240


class Reader:
    """A reader that follows a page in `folder`.

    Args:
        folder: where files are written and commands run.
        port: where the service listens, or will when the page starts it.
        redis_port: where Redis does.
        environment: of everything that runs.
    """

    def __init__(self, folder: Path, *, port: int, redis_port: int, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._ports = {8000: port, 6379: redis_port, **{other: free_port() for other in _OTHER_PORTS}}
        self._environment = dict(environment)
        self._exported = folder / ".exported"
        self._exported.touch()
        self._running: list[subprocess.Popen[bytes]] = []
        self._said: str | None = None
        self._exports = False

    def follow(self, blocks: Sequence[Block]) -> None:
        """Run the blocks, one after another.

        Raises:
            AssertionError: one did not do what the page says; the message names its line.
        """
        for block in blocks:
            if block.not_run is None:
                self._do(block)
            else:
                self._said = None

    def close(self) -> None:
        """Stop all running servers."""
        for process in self._running:
            if process.poll() is None:
                # The shell and what it started, as Ctrl-C in its terminal would.
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)

    def _do(self, block: Block) -> None:
        where = f"the block of line {block.line}"
        if block.title is not None:
            assert block.language in FILES or block.language in PROGRAMS, where
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._here(block.text))
        elif block.keeps_running is not None:
            self._start(block)
        elif block.language in COMMANDS:
            text = self._smaller(block.text)
            commands = None if self._exports else _plain_commands(text)
            self._exports = self._exports or "export " in text
            self._said = self._run(text, block) if commands is None else self._invoke(commands, block)
        elif block.language in PROGRAMS:
            name, program = _PROGRAM[block.language]
            (self.folder / name).write_text(self._here(block.text))
            self._said = self._run(f"{program} {name}", block)
        elif block.language in ANSWERS and self._said is not None:
            expect = _expect_json if block.language == "json" else _expect_text
            expect(block.text, self._said, where)
        else:
            raise PageError(f"{where}: it is no file, having no title, and what it may be the answer to was not run")

    def _here(self, text: str) -> str:
        """Return the text with the ports of this run."""
        for shown, real in self._ports.items():
            text = re.sub(rf"(127\.0\.0\.1:|-p |--port ){shown}\b", rf"\g<1>{real}", text)
        text = re.sub(r"willbuy serve(?!.*--port)", f"willbuy serve --port {self._ports[8000]}", text)
        for pattern, patient in _PATIENT.items():
            text = re.sub(pattern, patient, text)
        return text

    def _smaller(self, text: str) -> str:
        for large, small in SMALLER.items():
            text = text.replace(large, small)
        return self._here(_SESSIONS.sub(r"\g<1>700", text))

    def _script(self, text: str) -> list[str]:
        exported = shlex.quote(str(self._exported))
        return ["bash", "-euo", "pipefail", "-c", f"source {exported}\n{text}\nexport -p > {exported}"]

    def _run(self, text: str, block: Block) -> str:
        done = subprocess.run(
            self._script(text),
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            # SLOWLOG shows the bytes of a slow command.
            errors="replace",
            timeout=_DEADLINE_S,
            check=False,
        )
        assert done.returncode == block.status, (
            f"line {block.line} ended with {done.returncode}\n{text}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
        return done.stdout

    def _invoke(self, commands: Sequence[Sequence[str]], block: Block) -> str:
        said = ""
        with contextlib.chdir(self.folder):
            for arguments in commands:
                result = CliRunner().invoke(cli, arguments, env=self._environment)
                said += result.stdout
                assert result.exit_code == block.status, (
                    f"line {block.line} ended with {result.exit_code}\n{arguments}\n"
                    f"{result.output[-4000:]}\n{result.exception!r}"
                )
        return said

    def _start(self, block: Block) -> None:
        """Start a server and wait until it listens."""
        port = self._ports[block.keeps_running or 0]
        log = self.folder / f".{port}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                self._script(self._smaller(block.text)),
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._running.append(process)
        self._said = None
        deadline = time.monotonic() + _DEADLINE_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"line {block.line}: {log.read_text()[-4000:]}")
            time.sleep(0.1)


def tools(folder: Path, found: Mapping[str, Path]) -> Path:
    """Create and return a folder of links to programs, by the names that pages use."""
    folder.mkdir(exist_ok=True)
    for name, path in found.items():
        (folder / name).symlink_to(path)
    return folder


def environment(path: Sequence[Path], **variables: str) -> dict[str, str]:
    """Return this process's environment with folders prepended to PATH, and long time-outs as only settings."""
    kept = service_environment()
    kept["PATH"] = os.pathsep.join([*map(str, path), kept.get("PATH", os.defpath)])
    # Narrower than that, tables are cut and their lines are not those of the page.
    return kept | {"COLUMNS": "120"} | variables


def find_node() -> Path | None:
    """Return the path of Node: the system's, or Playwright's."""
    found = shutil.which("node")
    return Path(found) if found else playwright_node()


def playwright_node() -> Path | None:
    """Return the path of the Node in Playwright's wheel."""
    playwright = find_spec("playwright")
    if playwright is None or playwright.origin is None:
        return None
    found = shutil.which("node", path=Path(playwright.origin).parent / "driver")
    return Path(found) if found else None


def _plain_commands(text: str) -> list[list[str]] | None:
    """Return the arguments of each command if all are training commands of `willbuy` and need no shell."""
    text = text.replace("\\\n", " ")
    if re.search(r"[|&;<>$`'\"*(){}\\]", text):
        return None
    lines = [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]
    known = {command.name or getattr(command.callback, "__name__", "") for command in cli.registered_commands}
    return [line[1:] for line in lines] if all(line[0] == "willbuy" and line[1] in known for line in lines) else None


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _expect_json(page: str, said: str, where: str) -> None:
    """Check that the output has every field of the page's JSON, with the same type."""
    differences = list(_differences("", json.loads(page), json.loads(said)))
    assert not differences, f"{where}: {'; '.join(differences)}\n{said[:2000]}"


def _differences(path: str, page: Any, said: Any) -> Iterator[str]:
    if isinstance(page, dict) and isinstance(said, dict):
        for key, value in page.items():
            if key in said:
                yield from _differences(f"{path}.{key}", value, said[key])
            else:
                yield f"{path}.{key} was not said"
    elif isinstance(page, list) and isinstance(said, list):
        for index, (shown, real) in enumerate(zip(page, said, strict=False)):
            yield from _differences(f"{path}[{index}]", shown, real)
        if len(said) < len(page):
            yield f"{path} has {len(said)} entries"
    elif isinstance(page, str) and isinstance(said, str):
        if _NUMBER.sub("#", page) != _NUMBER.sub("#", said) and not re.search(r"\d", page):
            yield f"{path} is {said!r}"
    elif type(page) is not type(said):
        yield f"{path} is {said!r}"


def _expect_text(page: str, said: str, where: str) -> None:
    """Check that the output has every line of the page's text; numbers may differ, `...` matches anything."""
    real = [_plain(line) for line in said.splitlines()]
    for line in page.splitlines():
        if line.strip() in {"", "..."}:
            continue
        pattern = ".*".join(re.escape(part) for part in _plain(line).split("..."))
        assert any(re.fullmatch(pattern, one) for one in real), f"{where}: nothing like {line!r} in\n{said[:4000]}"


def _plain(line: str) -> str:
    return " ".join(_NUMBER.sub("#", line).split())
