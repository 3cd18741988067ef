"""A digest of the code in a TorchScript archive, read without torch.

The digest covers each entry that torch runs or builds the module from: source, constants, and the module's attributes
(`data.pkl`). Not covered: tensors (the fingerprint hashes them), source positions for error messages, and `extra/`,
where manifest and compiled step lie.

torch renames a class when its process has scripted a class of this name before: `linear.Linear` becomes
`linear.___torch_mangle_3.Linear`. So a reference counts as the plain name with the digest of its class.
Then the digest is the same in every process, and a reference that leads to another class changes it. torch writes a
class's constants in the order of a Python set, which differs from process to process, so they are sorted.
"""

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Final

_MANGLED: Final = re.compile(rb"\.___torch_mangle_\d+")
# In source, and in the pickle's GLOBAL instruction: module, line feed, name.
_REFERENCE: Final = re.compile(rb"__torch__(?:\.\w+)*(?:\n\w+)?")
_DEFINITION: Final = re.compile(rb"^(?=(?:class|def) )", re.MULTILINE)
_NAME: Final = re.compile(rb"(?:class|def) (\w+)")
_CONSTANTS: Final = re.compile(rb"(?:^ +\w+ : Final\[.*\n)+", re.MULTILINE)
_SOURCE: Final = "code/"


class _Definitions:
    """The classes and functions of an archive by qualified name, with their digests."""

    def __init__(self) -> None:
        self._texts: dict[bytes, bytes] = {}
        self._digests: dict[bytes, bytes] = {}

    def add(self, path: str, source: bytes) -> None:
        """Add the definitions of a source file, and the text before the first one.

        Raises:
            ValueError: a definition occurs twice.
        """
        module = path.removeprefix(_SOURCE).removesuffix(".py").replace("/", ".").encode()
        for text in filter(None, (part.strip() for part in _DEFINITION.split(source))):
            found = _NAME.match(text)
            name = module + b"." + found[1] if found else module + b".:"
            if name in self._texts:
                raise ValueError(f"{name.decode(errors='replace')} is defined twice")
            self._texts[name] = _CONSTANTS.sub(_sorted_lines, text)

    def plain(self, text: bytes) -> bytes:
        """Return a text in which each reference is a plain name with the digest of its definition."""
        return _REFERENCE.sub(lambda found: self._reference(found[0].replace(b"\n", b".")), text)

    def all(self) -> list[bytes]:
        """Return plain name and digest of each definition, sorted."""
        return sorted(self._reference(name) for name in self._texts)

    def _reference(self, name: bytes) -> bytes:
        plain = _MANGLED.sub(b"", name)
        if name not in self._texts:
            # A method or an enumerator of a definition is named after it.
            owner, _, member = name.rpartition(b".")
            return self._reference(owner) + b"." + member if owner in self._texts else plain
        if name not in self._digests:
            # Methods name their own class; such a reference counts as the plain name.
            self._digests[name] = b""
            self._digests[name] = hashlib.sha256(self.plain(self._texts[name])).hexdigest().encode()
        return plain + b"@" + self._digests[name]


def code_digest(path: Path) -> str:
    """Return the SHA-256 of an archive's code, in hexadecimal digits.

    Raises:
        ValueError: an entry or a definition occurs twice, or definitions are nested too deeply.
    """
    definitions = _Definitions()
    others: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        root = f"{entries[0].filename.partition('/')[0]}/" if entries else ""
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise ValueError("it has two entries of one name")
        for entry in entries:
            name = entry.filename.removeprefix(root)
            if _is_code(name):
                content = archive.read(entry)
                if name.startswith(_SOURCE) and name.endswith(".py") and content.strip():
                    definitions.add(name, content)
                else:
                    others[name] = content
    try:
        parts = definitions.all()
        parts += [name.encode() + b"\0" + definitions.plain(content) for name, content in sorted(others.items())]
    except RecursionError as exc:
        raise ValueError("its definitions are nested too deeply") from exc
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()


def _sorted_lines(found: re.Match[bytes]) -> bytes:
    return b"".join(sorted(found[0].splitlines(keepends=True)))


def _is_code(name: str) -> bool:
    if name.startswith(("extra/", "data/")) or name == ".data/serialization_id":
        return False
    return not (name.startswith(_SOURCE) and name.endswith(".py.debug_pkl"))
