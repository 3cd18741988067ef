"""The artifact's code is part of what its fingerprint stands for: who changes it is refused before torch runs it."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from support.artifacts import random_model
from support.deployment import ROOT

from model.artifact import ArtifactCorruptError, load, manifest_of, read_manifest, save
from model.code_digest import code_digest
from model.compiled import add_compiled_step


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "original.pt"
    save(random_model(), path)
    return path


def entries(path):
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def written(path, parts):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts:
            archive.writestr(name, content)
    return path


def replaced(before, after, where):
    """A change of one entry's text; the entry has it."""

    def change(parts):
        assert any(where(name) and before in content for name, content in parts)
        return [(name, content.replace(before, after) if where(name) else content) for name, content in parts]

    return change


def is_source(name):
    return name.endswith(".py")


def renamed(parts):
    changed = [(name.replace("model/dropout.py", "model/dropout2.py"), content) for name, content in parts]
    assert changed != parts
    return changed


def with_entry(name, content):
    return lambda parts: [*parts, (f"{parts[0][0].partition('/')[0]}/{name}", content)]


def without(part):
    def change(parts):
        kept = [(name, content) for name, content in parts if part not in name]
        assert len(kept) < len(parts)
        return kept

    return change


def with_another_class_of_the_name(parts):
    """Two layers swap their classes, which differ in their sizes; each class is as it was."""
    references = b"".join(content for name, content in parts if is_source(name))
    one, other, *_ = sorted(
        set(re.findall(rb"__torch__\.torch\.nn\.modules\.linear\.(?:___torch_mangle_\d+\.)?Linear", references))
    )
    swap = {one: other, other: one}
    pattern = re.compile(b"(?<=: )(?:%s|%s)(?=\n)" % (re.escape(one), re.escape(other)))
    changed = [
        (name, pattern.sub(lambda found: swap[found[0]], content) if is_source(name) else content)
        for name, content in parts
    ]
    assert changed != parts
    return changed


CHANGES = {
    "another function": replaced(b"torch.sigmoid(", b"torch.tanh(", is_source),
    "another number": replaced(b"0.5", b"0.25", is_source),
    "another constant of a class": replaced(b"Final[int] = 8", b"Final[int] = 9", is_source),
    "another class of the name": with_another_class_of_the_name,
    "another attribute": replaced(b"training", b"trainink", lambda name: name.endswith("/data.pkl")),
    "other constants": replaced(b".", b"..", lambda name: name.endswith("/constants.pkl")),
    "a tensor among the constants": with_entry("constants/0", bytes(4)),
    "a file more": with_entry("code/__torch__/model/more.py", b"def more(x: Tensor) -> Tensor:\n  return x\n"),
    "a file more, empty": with_entry("code/__torch__/model/more.py", b""),
    "a file renamed": renamed,
    "a file less": without("model/dropout.py"),
    "a second entry of the name": with_entry("code/__torch__/model/dropout.py", b""),
    "a second entry but for case": with_entry("code/__torch__/model/DROPOUT.py", b""),
    "another folder": lambda parts: [*parts, ("other/code/__torch__/model/more.py", b"")],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("how", CHANGES)
def test_changed_code_is_refused_before_torch_opens_the_file(original, tmp_path, monkeypatch, how):
    path = written(tmp_path / "changed.pt", CHANGES[how](entries(original)))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("torch opened the file"))

    with pytest.raises(ArtifactCorruptError, match=r"changed\.pt: .*(the code in it|damaged)"):
        load(path)


def test_other_code_has_another_fingerprint(original, tmp_path):
    changed = written(tmp_path / "tanh.pt", CHANGES["another function"](entries(original)))
    digest = code_digest(changed)
    manifest = read_manifest(changed).to_dict()
    parts = [
        (name, json.dumps(manifest | {"code": digest}).encode() if name.endswith("/manifest.json") else content)
        for name, content in entries(changed)
    ]

    # Its digest alone does not do: the fingerprint stands for the code too.
    with pytest.raises(ArtifactCorruptError, match="is not the one that its manifest describes"):
        load(written(tmp_path / "forged.pt", parts))


@pytest.mark.slow
@pytest.mark.timeout(120)  # another process imports torch
def test_the_same_model_has_the_same_digest_whatever_the_process_scripted_before(original, tmp_path):
    script = """
import sys
from pathlib import Path
from support.artifacts import random_model
from model.artifact import save
for cell in ("gru", "lstm"):
    save(random_model(cell=cell), Path(sys.argv[1]))
"""
    path = tmp_path / "again.pt"
    # torch writes a class's constants in the order of a set, which depends on the seed.
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONHASHSEED": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", script, path], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr

    assert {name for name, _ in entries(path)} != {name for name, _ in entries(original)}, "torch chose other names"
    assert read_manifest(path).code == read_manifest(original).code
    assert read_manifest(path).fingerprint == read_manifest(original).fingerprint


def test_other_models_have_other_digests(tmp_path):
    cells = [save(random_model(cell=cell), tmp_path / "m.pt").code for cell in ("lstm", "gru")]
    weights = [save(random_model(seed=seed), tmp_path / "m.pt").code for seed in (1, 2)]

    assert cells[0] != cells[1]
    assert weights == [cells[0]] * 2, "weights are no code"


def test_every_tensor_of_the_file_is_one_that_the_fingerprint_covers(original):
    # The digest leaves tensors out, so none may be outside the state.
    module, _ = load(original)
    tensors = [name for name, _ in entries(original) if name.partition("/")[2].startswith("data/")]

    assert len(tensors) == len(module.state_dict())


def test_a_compiled_step_changes_neither_digest_nor_fingerprint(original, tmp_path):
    before = read_manifest(original)
    (tmp_path / "step.pt2").write_bytes(b"machine code")
    add_compiled_step(original, tmp_path / "step.pt2", before.fingerprint, tmp_path / "compiled.pt")

    assert code_digest(tmp_path / "compiled.pt") == before.code
    assert load(tmp_path / "compiled.pt")[1] == before


def test_an_artifact_of_an_earlier_release_keeps_its_fingerprint(original, tmp_path):
    earlier = manifest_of(random_model()).to_dict()
    del earlier["code"]
    parts = [
        (name, json.dumps(earlier).encode() if name.endswith("/manifest.json") else content)
        for name, content in entries(original)
    ]
    path = written(tmp_path / "earlier.pt", parts)

    assert load(path)[1].fingerprint == earlier["fingerprint"]


def test_deeply_nested_definitions_are_refused(original, tmp_path):
    deep = b"".join(b"def f%d(x: int) -> int:\n  return __torch__.deep.f%d(x)\n" % (n, n + 1) for n in range(5000))
    path = written(tmp_path / "deep.pt", with_entry("code/__torch__/deep.py", deep)(entries(original)))

    with pytest.raises(ArtifactCorruptError, match="nested too deeply"):
        load(path)


def test_the_manifest_of_another_model_is_not_saved(tmp_path: Path):
    with pytest.raises(ArtifactCorruptError, match="is not the one that its manifest describes"):
        save(random_model(seed=1), tmp_path / "m.pt", manifest_of(random_model(seed=2)))
