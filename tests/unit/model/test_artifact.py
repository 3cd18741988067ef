"""The artifact's file: what comes back from it, what its fingerprint covers, and every way in which it can be wrong."""

import hashlib
import json
import random
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.artifacts import random_model
from support.event_strategies import ALL_SCOPES, columns_of, random_sessions

from model import artifact
from model.artifact import (
    ArtifactCorruptError,
    ArtifactDigestError,
    ArtifactError,
    ArtifactMissingError,
    ArtifactVersionError,
    Manifest,
    ScriptMismatchError,
    load,
    manifest_of,
    read_manifest,
    save,
)
from model.encoder import Encoder
from model.network import FeatureScaling, SessionModel
from model.properties import PropertySpec
from model.sizes import NetworkSizes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def original(folder):
    """An artifact that is only read, and the model in it."""
    model = random_model(seed=1, layers=2, properties=ALL_SCOPES, calendar=True)
    save(model, folder / "original.pt")
    return folder / "original.pt", model


@pytest.fixture(scope="module")
def another(folder):
    save(random_model(seed=2, layers=2, properties=ALL_SCOPES, calendar=True), folder / "another.pt")
    return folder / "another.pt"


def entry_of(archive):
    return next(name for name in archive.namelist() if name.endswith("/extra/manifest.json"))


def rewritten(source: Path, target: Path, change) -> Path:
    """A copy of an artifact, its checksums intact, whose manifest went through `change(values)`; None leaves it out."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        name = entry_of(archive)
        for item in archive.namelist():
            content = archive.read(item)
            if item == name:
                changed = change(json.loads(content))
                if changed is None:
                    continue
                content = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
            copy.writestr(item, content)
    return target


def described(manifest: Manifest) -> Manifest:
    """What `manifest_of` and `save` agree on: all but the digest of the code, and the fingerprint with it."""
    return replace(manifest, fingerprint="", code="")


# --- round trip


def test_what_was_saved_is_what_is_loaded(original):
    path, model = original
    module, manifest = load(path)
    assert manifest == read_manifest(path)
    assert not module.training
    columns = columns_of(random_sessions([20, 20, 20]))
    with torch.inference_mode():
        torch.testing.assert_close(module(*columns), model(*columns), rtol=0, atol=1e-6)


def test_the_manifest_tells_the_model(original):
    path, model = original
    manifest = read_manifest(path)
    assert described(manifest) == replace(described(manifest_of(model)), created=manifest.created)
    assert len(bytes.fromhex(manifest.code)) == 32
    assert len(bytes.fromhex(manifest.fingerprint)) == 8
    assert manifest.event_names == model.encoder.vocabularies["event_name"]
    assert manifest.properties == list(ALL_SCOPES)
    assert sorted(manifest.property_values) == ["device", "page"]
    assert manifest.calendar
    assert manifest.sizes["layers"] == 2
    assert manifest.state == {"hidden": 32, "carry": model.encoder.carry_size, "memory": model.encoder.memory_size}
    assert manifest.features == model.encoder.feature_names
    assert manifest.calibration == {"temperature": 1.0, "bias": 0.0}
    assert manifest.versions["torch"] == torch.__version__


def test_what_was_told_of_a_model_comes_back(tmp_path):
    model = random_model()
    told = manifest_of(model, metrics={"auc": 0.8}, data={"sessions": 7}, training={"epochs": 3})
    written = save(model, tmp_path / "m.pt", told)
    assert described(written) == described(told)
    assert read_manifest(tmp_path / "m.pt") == written


def test_a_manifest_survives_json(original):
    manifest = read_manifest(original[0])
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_the_file_is_there_for_the_services_user_too(original):
    assert original[0].stat().st_mode & 0o777 == 0o644


def test_the_fingerprint_is_the_same_after_the_round_trip_and_from_run_to_run(original, tmp_path):
    module, manifest = load(original[0])
    assert artifact.model_fingerprint(module, artifact._configuration(manifest)) == manifest.fingerprint  # noqa: SLF001 - what `load` compares
    again = random_model(seed=1, layers=2, properties=ALL_SCOPES, calendar=True)
    assert save(again, tmp_path / "again.pt").fingerprint == manifest.fingerprint


# --- what the fingerprint covers

TENSORS = sorted(random_model(properties=ALL_SCOPES).state_dict())


@pytest.mark.parametrize("name", TENSORS)
def test_the_fingerprint_changes_with_any_number_in_the_model(name):
    model = random_model(properties=ALL_SCOPES)
    before = manifest_of(model).fingerprint
    last = model.state_dict()[name].view(-1)
    assert len(last)
    last[-1] = ~last[-1] if last.dtype == torch.bool else last[-1] + 1
    assert manifest_of(model).fingerprint != before


def variant(*, events=("a", "b"), items=("i",), categories=("c",), properties=ALL_SCOPES, values=("v",), **sizes):
    calendar = sizes.pop("calendar", False)
    specs = {spec.name: list(values) for spec in properties if spec.kind == "category"}
    encoder = Encoder(list(events), list(categories), list(items), list(properties), specs, calendar=calendar)
    torch.manual_seed(0)
    return SessionModel(encoder, NetworkSizes(**{"hidden_size": 4, "head_size": 4} | sizes))


@pytest.mark.parametrize(
    "changes",
    [
        {"events": ("a", "z")},
        {"events": ("a", "b", "d")},
        {"items": ("j",)},
        {"categories": ("d",)},
        {"values": ("w",)},
        {"properties": ALL_SCOPES[:-1]},
        {"properties": (*ALL_SCOPES[:-1], PropertySpec("scroll", "number", "session"))},
        {"properties": (*ALL_SCOPES[:-1], PropertySpec("scrolled", "number", "event"))},
        {"properties": ALL_SCOPES[::-1]},
        {"hidden_size": 5},
        {"layers": 2},
        {"head_size": 5},
        {"embedding_size": 1},
        {"calendar": True},
    ],
    ids=str,
)
def test_the_fingerprint_changes_with_the_configuration(changes):
    assert manifest_of(variant(**changes)).fingerprint != manifest_of(variant()).fingerprint


def test_the_fingerprint_knows_name_type_and_shape_of_each_tensor():
    def fingerprint_of(**tensors):
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return artifact.model_fingerprint(module, {})

    zeros = torch.zeros(2, 3)
    others = [
        {"a": zeros, "c": zeros},
        {"a": zeros.reshape(3, 2), "b": zeros},
        {"a": zeros.to(torch.int32), "b": zeros},
        {"a": zeros},
        {"a": zeros, "b": zeros + 1},
    ]
    assert len({fingerprint_of(a=zeros, b=zeros), *(fingerprint_of(**one) for one in others)}) == 6


@pytest.mark.parametrize("words", [("a", "b"), ("b", "a")])
def test_the_fingerprint_does_not_depend_on_the_order_in_which_words_came(words):
    assert manifest_of(variant(events=words)).fingerprint == manifest_of(variant()).fingerprint


def test_the_fingerprint_changes_with_the_scaling():
    model = variant()
    width = len(model.encoder.feature_names)
    scaling = FeatureScaling.identity(width)
    scaling.bin_low[3] = 0.25
    torch.manual_seed(0)
    scaled = SessionModel(model.encoder, model.sizes, scaling)
    assert manifest_of(scaled).fingerprint != manifest_of(model).fingerprint


def test_the_fingerprint_does_not_change_with_what_is_only_told():
    model = variant()
    told = manifest_of(model, metrics={"auc": 0.9}, data={"sessions": 5}, training={"seed": 3})
    assert told.fingerprint == manifest_of(model).fingerprint


# --- files that are no artifact


def with_size(size):
    return lambda content: content[:size]


BROKEN = {
    "empty": with_size(0),
    "one byte": with_size(1),
    "half": lambda content: content[: len(content) // 2],
    "all but the last byte": with_size(-1),
    "without its start": lambda content: content[100:],
    "text": lambda _: b"epoch,loss\n1,0.5\n" * 100,
    "random bytes": lambda _: random.Random(0).randbytes(50_000),
    "a zip's magic only": lambda _: b"PK\x03\x04" + bytes(1000),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_refused_by_name(original, tmp_path, how):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(BROKEN[how](original[0].read_bytes()))
    for reader in (read_manifest, load):
        with pytest.raises(ArtifactCorruptError, match=r"broken\.pt: not a willbuy artifact, or damaged"):
            reader(broken)


def test_a_flipped_bit_anywhere_in_a_files_content_is_noticed(original, tmp_path):
    content = original[0].read_bytes()
    with zipfile.ZipFile(original[0]) as archive:
        entries = [entry for entry in archive.infolist() if entry.compress_size]
    for number, entry in enumerate(entries):
        # Before the content stand 30 fixed bytes, the last four of which tell the lengths of name and extra field.
        header = content[entry.header_offset :][:30]
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        damaged = bytearray(content)
        # Not in the first byte: a deflated stream without its end mark still gives its whole content.
        damaged[start + entry.compress_size * (1 + number % 3) // 4] ^= 1 << number % 8
        (tmp_path / "flipped.pt").write_bytes(damaged)
        with pytest.raises(ArtifactCorruptError, match=r"flipped\.pt: "):
            load(tmp_path / "flipped.pt")


def test_no_file_is_missing_and_the_message_says_what_writes_one(tmp_path):
    for reader in (read_manifest, load):
        with pytest.raises(
            ArtifactMissingError, match=r"none\.pt: no such file; `willbuy train DATA --out .*none\.pt`"
        ):
            reader(tmp_path / "none.pt")


def test_a_folder_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactMissingError, match=str(tmp_path)):
        load(tmp_path)


def test_another_programs_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ArtifactCorruptError, match=r"other\.zip: has no willbuy manifest"):
        load(tmp_path / "other.zip")


@pytest.mark.parametrize("extra", [{}, {"manifest.json": "[1, 2]"}, {"manifest.json": "{}"}, {"manifest.json": "null"}])
def test_another_programs_torchscript_is_refused(tmp_path, extra):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "other.pt", _extra_files=extra)
    with pytest.raises(ArtifactCorruptError, match=r"other\.pt: has no willbuy manifest"):
        load(tmp_path / "other.pt")


def test_another_programs_torch_file_is_refused(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ArtifactCorruptError, match=r"other\.pt: has no willbuy manifest"):
        load(tmp_path / "other.pt")


# --- manifests that are wrong


def test_a_rewritten_artifact_is_still_one(original, tmp_path):
    # The control of the tests below: rewriting alone breaks nothing.
    path = rewritten(original[0], tmp_path / "same.pt", lambda values: values)
    assert load(path)[1] == read_manifest(original[0])


@pytest.mark.parametrize("version", [0, 2, 99, "1", None])
def test_another_format_version_is_refused_with_both_versions_named(original, tmp_path, version):
    path = rewritten(original[0], tmp_path / "old.pt", lambda values: values | {"format_version": version})
    for reader in (read_manifest, load):
        with pytest.raises(
            ArtifactVersionError, match=rf"old\.pt: artifact format {version}, this release reads format 1"
        ):
            reader(path)


def test_a_newer_format_with_other_fields_is_a_version_error_and_not_a_corrupt_one(original, tmp_path):
    path = rewritten(original[0], tmp_path / "new.pt", lambda values: {"format_version": 2, "layout": "unheard of"})
    with pytest.raises(ArtifactVersionError, match=r"new\.pt"):
        load(path)


def without(field):
    return lambda values: {key: value for key, value in values.items() if key != field}


UNREADABLE = {
    "no fingerprint": without("fingerprint"),
    "no properties": without("properties"),
    "no state": without("state"),
    "unknown field": lambda values: values | {"colour": "red"},
    "properties null": lambda values: values | {"properties": None},
    "property of unknown kind": lambda values: values | {"properties": [{"name": "x", "kind": "text"}]},
    "property with unknown field": lambda values: values | {"properties": [{"name": "x", "kind": "number", "y": 1}]},
    "properties numbers": lambda values: values | {"properties": [1]},
}


@pytest.mark.parametrize("how", UNREADABLE)
def test_a_manifest_with_wrong_fields_is_refused_by_the_files_name(original, tmp_path, how):
    path = rewritten(original[0], tmp_path / "wrong.pt", UNREADABLE[how])
    for reader in (read_manifest, load):
        with pytest.raises(ArtifactCorruptError, match=r"wrong\.pt.*manifest"):
            reader(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "open", "not utf-8", "deep"]
)
def test_a_manifest_that_is_no_json_is_refused(original, tmp_path, content):
    path = rewritten(original[0], tmp_path / "wrong.pt", lambda _: content)
    for reader in (read_manifest, load):
        with pytest.raises(ArtifactCorruptError, match=r"wrong\.pt"):
            reader(path)


def test_an_artifact_without_its_manifest_is_refused(original, tmp_path):
    path = rewritten(original[0], tmp_path / "bare.pt", lambda _: None)
    with pytest.raises(ArtifactCorruptError, match=r"bare\.pt: has no willbuy manifest"):
        load(path)


def test_swapped_manifests_are_noticed(original, another, tmp_path):
    values = read_manifest(another).to_dict()
    path = rewritten(original[0], tmp_path / "swapped.pt", lambda _: values)
    with pytest.raises(ArtifactCorruptError, match=rf"swapped\.pt: .*expected {values['fingerprint']}"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"event_names": ["page_view"]},
        {"calibration": {"temperature": 2.0, "bias": 0.0}},
        {"state": {"hidden": 8, "carry": 1, "memory": 5}},
        {"properties": []},
        {"fingerprint": "0" * 16},
        {"fingerprint": 5},
    ],
    ids=str,
)
def test_a_manifest_that_was_edited_is_noticed(original, tmp_path, change):
    path = rewritten(original[0], tmp_path / "edited.pt", lambda values: values | change)
    with pytest.raises(ArtifactCorruptError, match=r"edited\.pt: .*is not the one that its manifest describes"):
        load(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stolen_manifest_on_another_module_is_noticed(original, tmp_path, dtype):
    values = json.dumps(read_manifest(original[0]).to_dict())
    module = torch.jit.script(torch.nn.Linear(2, 2).to(dtype))
    torch.jit.save(module, tmp_path / "stolen.pt", _extra_files={"manifest.json": values})
    with pytest.raises(ArtifactCorruptError, match=r"stolen\.pt"):
        load(tmp_path / "stolen.pt")


# --- SHA-256


def test_the_right_sha256_loads_in_either_case_and_a_wrong_one_is_refused_before_anything_is_run(
    original, monkeypatch, tmp_path
):
    path, _ = original
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load(path, sha256=digest)[1] == load(path, sha256=digest.upper())[1]

    def never(*_, **__):
        raise AssertionError("torch was asked to run a file that is not the wanted one")

    monkeypatch.setattr(torch.jit, "load", never)
    for reader in (read_manifest, load):
        with pytest.raises(ArtifactDigestError, match=rf"original\.pt: SHA-256 is {digest}, expected {'0' * 64}"):
            reader(path, sha256="0" * 64)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ArtifactDigestError, match=r"text\.pt"):
        load(tmp_path / "text.pt", sha256=digest)


# --- saving


class Skewed(SessionModel):
    """Its eager forward computes something else than its step."""

    def forward(self, timestamp_ms: torch.Tensor, codes: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        features, indices = self.encoder.sequence(timestamp_ms, codes, numbers)
        return self.calibrated(self.sequence_logits(features, indices)) * 0.999


def skewed_model():
    model = Skewed(random_model().encoder, NetworkSizes(hidden_size=4, head_size=4))
    return model.eval()


def broken_model():
    model = random_model()
    with torch.no_grad():
        model.logit.bias.fill_(float("nan"))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [(skewed_model, r"the scripted step differs from the eager model by"), (broken_model, r"differs .* by nan")],
)
def test_a_script_that_differs_is_not_written_and_the_old_artifact_stays(tmp_path, make, message):
    path = tmp_path / "model.pt"
    path.write_bytes(b"the old artifact")
    with pytest.raises(ScriptMismatchError, match=message):
        save(make(), path)
    assert path.read_bytes() == b"the old artifact"
    assert list(tmp_path.iterdir()) == [path]


def test_a_scripted_step_that_differs_from_the_sequence_is_noticed(tmp_path, monkeypatch):
    load_as_it_is = artifact.load

    def load_changed(path, **options):
        module, manifest = load_as_it_is(path, **options)
        with torch.no_grad():
            module.bias.add_(0.01)
        return module, manifest

    monkeypatch.setattr(artifact, "load", load_changed)
    with pytest.raises(ScriptMismatchError, match="the scripted sequence differs"):
        save(random_model(), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_save_that_fails_midway_leaves_the_old_artifact_and_nothing_else(original, tmp_path, monkeypatch, error):
    path = tmp_path / "model.pt"
    path.write_bytes(original[0].read_bytes())

    def fails(_module, target, **_):
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch.jit, "save", fails)
    with pytest.raises(type(error)):
        save(random_model(), path)
    assert list(tmp_path.iterdir()) == [path]
    assert load(path)[1] == read_manifest(original[0])


def test_another_models_manifest_is_not_written(tmp_path):
    with pytest.raises(ArtifactCorruptError, match="is not the one that its manifest describes"):
        save(random_model(seed=1), tmp_path / "model.pt", manifest_of(random_model(seed=2)))
    assert not list(tmp_path.iterdir())


def test_saving_again_replaces_the_file_whole(original, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(original[0].read_bytes())
    written = save(random_model(seed=9), path)
    assert read_manifest(path) == written
    assert written.fingerprint != read_manifest(original[0]).fingerprint


def test_saving_works_without_items_categories_and_properties(tmp_path):
    model = SessionModel(Encoder(["page_view"], [], [], [], {}, calendar=False), NetworkSizes(hidden_size=1))
    written = save(model, tmp_path / "small.pt")
    assert load(tmp_path / "small.pt")[1] == written


def test_a_model_in_training_mode_is_saved_as_it_answers(tmp_path):
    model = random_model().train()
    save(model, tmp_path / "model.pt")
    columns = columns_of(random_sessions([10]), model.encoder.properties)
    with torch.inference_mode():
        torch.testing.assert_close(load(tmp_path / "model.pt")[0](*columns), model.eval()(*columns), rtol=0, atol=1e-6)


# --- anything at all

FEW_SECONDS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_loads_or_is_refused(path, content):
    path.write_bytes(content)
    refusal = None
    try:
        load(path)
    except ArtifactError as error:
        refusal = str(error)
    assert refusal is None or path.name in refusal


@FEW_SECONDS
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_with_an_artifact_error(folder, content):
    (folder / "random.pt").write_bytes(content)
    with pytest.raises(ArtifactCorruptError, match=r"random\.pt"):
        load(folder / "random.pt")


@FEW_SECONDS
@given(data=st.data())
def test_a_mutated_artifact_loads_or_raises_an_artifact_error(original, folder, data):
    content = bytearray(original[0].read_bytes())
    # Most of the structure that a reader trusts stands in the last 4 kB: the central directory.
    place = st.integers(0, len(content) - 1) | st.integers(len(content) - 4096, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(place)] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(place) :][: data.draw(st.integers(1, 40))]
    assert_loads_or_is_refused(folder / "mutated.pt", bytes(content))


# Offset in a central directory header (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.12) and byte.
DIRECTORY_DAMAGE = {
    "other version needed": (6, 0xFF),
    "encrypted": (8, 0x01),
    "patched data": (8, 0x20),
    "name in utf-8": (9, 0x08),
    "stored": (10, 0x00),
    "deflated": (10, 0x08),
    "bzip2": (10, 0x0C),
    "lzma": (10, 0x0E),
    "unknown method": (10, 0x63),
    "checksum": (16, 0xFF),
    "compressed size": (20, 0xFF),
    "size": (24, 0xFF),
    "length of name": (28, 0xFF),
    "length of extra field": (30, 0xFF),
    "offset": (44, 0xFF),
}


@pytest.mark.parametrize("how", DIRECTORY_DAMAGE)
def test_a_damaged_directory_entry_loads_or_raises_an_artifact_error(original, folder, how):
    field, value = DIRECTORY_DAMAGE[how]
    content = original[0].read_bytes()
    with zipfile.ZipFile(original[0]) as archive:
        entries = archive.infolist()
        start = archive.start_dir
    for number, entry in enumerate(entries):
        # A few of them: one stored, one deflated, and the manifest.
        if number in (0, 1, 4) or entry.filename.endswith("manifest.json"):
            damaged = bytearray(content)
            damaged[start + field] = value
            assert_loads_or_is_refused(folder / "directory.pt", bytes(damaged))
        start += 46 + len(entry.filename) + len(entry.extra) + len(entry.comment)


def test_a_manifest_beyond_the_limit_is_not_read(tmp_path):
    path = tmp_path / "large.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large/extra/manifest.json", b" " * (65 * 2**20))
    with pytest.raises(ArtifactCorruptError, match="its manifest has 68157440 bytes"):
        read_manifest(path)
