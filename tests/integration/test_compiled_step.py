"""The compiled step: made by the real compiler, used where it fits, and refused with the reason where it does not."""

import json
import shutil
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
import torch
from conftest import missing
from support.artifacts import write_artifact
from support.event_strategies import random_sessions
from support.tracing import untraced
from typer.testing import CliRunner

from model.artifact import load, read_manifest
from model.compiled import CompiledStepError, Target, add_compiled_step, compiled_digest, load_compiled
from model.predictor import load_predictor
from training.cli import cli

# The compiler is the machine's, and works for a minute where other tests run beside it.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_artifact(tmp_path_factory.mktemp("plain") / "model.pt", hidden_size=12, data={"base_rate": 0.2})


@pytest.fixture(scope="module")
def compiled(plain, tmp_path_factory):
    """The same model with its step compiled."""
    if shutil.which("g++") is None:
        raise missing("g++")
    from torch._inductor import config as inductor_config  # noqa: PLC0415 - takes a second, for one fixture

    out = tmp_path_factory.mktemp("compiled") / "model.pt"
    # What the package computes is the same without an optimised wrapper around the kernels.
    with untraced(), inductor_config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        result = CliRunner().invoke(cli, ["compile", str(plain), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert f"model {read_manifest(plain).fingerprint}" in result.output
    return out


def package_of(artifact, path):
    with zipfile.ZipFile(artifact) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/extra/step.pt2"))
        path.write_bytes(archive.read(name))
    return path


def refusal(artifact):
    module, manifest = load(artifact)
    with pytest.raises(CompiledStepError) as caught:
        load_compiled(artifact, manifest, module)
    return str(caught.value)


def with_description(artifact, out, change):
    """Copy an artifact with another description of its package."""
    with zipfile.ZipFile(artifact) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("/extra/step.json"):
                content = change(content)
            target.writestr(entry, content)
    return out


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_chained_answers_and_states_are_the_scripts(plain, compiled, count):
    script = load_predictor(plain, state_dtype="float32")
    step = load_predictor(compiled, state_dtype="float32")
    assert (script.engine, step.engine) == ("torchscript", "compiled")
    assert "`willbuy compile`" in script.engine_reason
    sessions = random_sessions([15] * count)
    states: Sequence[bytes | None] = [None] * count
    other: Sequence[bytes | None] = [None] * count
    for events in zip(*sessions, strict=True):
        expected, states = script.advance(events, states)
        actual, other = step.advance(events, other)
        assert actual == pytest.approx(expected, abs=1e-6)
    # Either continues the other's states.
    crossed, _ = script.advance(events, other)
    expected, _ = script.advance(events, states)
    assert crossed == pytest.approx(expected, abs=1e-6)


def test_a_batch_larger_than_the_largest_step_is_split(plain, compiled):
    sessions = random_sessions([1] * 41)
    events = [events[0] for events in sessions]
    expected, _ = load_predictor(plain).advance(events, [None] * 41)
    for largest in (1, 20):
        actual, _ = load_predictor(compiled, max_batch_size=largest).advance(events, [None] * 41)
        assert actual == pytest.approx(expected, abs=1e-6)


def test_a_live_base_rate_shifts_the_compiled_answers_too(plain, compiled):
    (events,) = random_sessions([1] * 1)
    unshifted, _ = load_predictor(plain).advance(events, [None])
    expected, _ = load_predictor(plain, base_rate=0.02).advance(events, [None])
    shifted = load_predictor(compiled, base_rate=0.02)
    assert shifted.engine == "compiled"
    assert shifted.advance(events, [None])[0] == pytest.approx(expected, abs=1e-6)
    assert expected[0] < unshifted[0] / 2


def test_threads_may_step_at_the_same_time(compiled):
    predictor = load_predictor(compiled)
    sessions = random_sessions([6] * 24)
    expected = [trace for trace, _ in predictor.traces(sessions)]
    with ThreadPoolExecutor(4) as threads:
        for traces in threads.map(predictor.traces, [sessions] * 12):
            assert [trace for trace, _ in traces] == expected


def test_the_artifact_keeps_script_manifest_and_size_when_it_is_compiled_again(plain, compiled, tmp_path):
    again = tmp_path / "again.pt"
    add_compiled_step(compiled, package_of(compiled, tmp_path / "step.pt2"), read_manifest(plain).fingerprint, again)
    assert read_manifest(again) == read_manifest(compiled) == read_manifest(plain)
    with zipfile.ZipFile(again) as archive, zipfile.ZipFile(compiled) as before:
        assert sorted(archive.namelist()) == sorted(before.namelist())
        assert len(set(archive.namelist())) == len(archive.namelist())
    assert load_predictor(again).engine == "compiled"
    assert compiled_digest(plain) is None
    assert compiled_digest(again) == compiled_digest(compiled) is not None


def test_of_another_model_is_refused(compiled, tmp_path):
    other = write_artifact(tmp_path / "other.pt", seed=5, hidden_size=12)
    package = package_of(compiled, tmp_path / "step.pt2")
    add_compiled_step(other, package, read_manifest(compiled).fingerprint, tmp_path / "named.pt")
    assert "of another model" in refusal(tmp_path / "named.pt")
    # Even where its description claims to be of this model, its answers are not.
    add_compiled_step(other, package, read_manifest(other).fingerprint, tmp_path / "claimed.pt")
    assert "differ" in refusal(tmp_path / "claimed.pt")
    predictor = load_predictor(tmp_path / "claimed.pt")
    assert predictor.engine == "torchscript"
    assert "differ" in predictor.engine_reason


def test_for_another_torch_machine_or_cpu_is_refused(compiled, tmp_path):
    def described(**changes):
        def change(content):
            about = json.loads(content)
            about["target"] |= changes
            return json.dumps(about)

        return refusal(with_description(compiled, tmp_path / "other.pt", change))

    assert described(torch="2.9.0") == f"it was compiled with torch 2.9.0, this is {torch.__version__}"
    assert "compiled for riscv64" in described(machine="riscv64")
    assert described(features=[*Target.here().features, "avx4096"]) == "this CPU lacks avx4096"


def test_fewer_instruction_sets_than_here_suffice():
    here = Target.here()
    assert here.missing_for(here) == ""
    assert here.missing_for(replace(here, features=here.features[:1])) == ""


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"fingerprint": "x", "target": 1}', b"\xff"])
def test_a_description_that_cannot_be_read_is_refused(compiled, tmp_path, content):
    assert "description" in refusal(with_description(compiled, tmp_path / "junk.pt", lambda _: content))


def test_a_package_that_is_none_is_refused(plain, tmp_path):
    junk = tmp_path / "step.pt2"
    junk.write_bytes(b"no package" * 100)
    add_compiled_step(plain, junk, read_manifest(plain).fingerprint, tmp_path / "junk.pt")
    assert "cannot be loaded" in refusal(tmp_path / "junk.pt")
    assert load_predictor(tmp_path / "junk.pt").engine == "torchscript"


def test_a_running_service_takes_the_compiled_step_and_says_so(service, valkey, plain, compiled, tmp_path):
    live = tmp_path / "live.pt"
    shutil.copy(plain, live)
    replica = service(redis_url=valkey.url, artifact=live, watch_artifact_s=0.1)

    def post(number):
        body = {"session_id": "s-1", "event_id": f"e-{number}", "event_name": "view_item"}
        answer = httpx.post(f"{replica.base_url}/v1/events", json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert post(1)["events"] == 1
    model = httpx.get(f"{replica.base_url}/v1/model").json()
    assert model["engine"] == "torchscript"
    assert "willbuy_model_compiled 0.0" in httpx.get(f"{replica.base_url}/metrics").text
    shutil.copy(compiled, tmp_path / "new.pt")
    (tmp_path / "new.pt").replace(live)
    deadline = time.monotonic() + 60
    while httpx.get(f"{replica.base_url}/v1/model").json()["engine"] != "compiled":
        assert time.monotonic() < deadline, replica.output()
        time.sleep(0.05)
    after = httpx.get(f"{replica.base_url}/v1/model").json()
    assert after["fingerprint"] == model["fingerprint"]
    assert "willbuy_model_compiled 1.0" in httpx.get(f"{replica.base_url}/metrics").text
    # The session's state is used on: the model has the same fingerprint.
    assert post(2)["events"] == 2
    assert "willbuy_rebuilds_total 0.0" in httpx.get(f"{replica.base_url}/metrics").text
    assert '"engine": "compiled"' in replica.output()


def test_without_a_compiler_the_command_says_what_to_install(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for arguments in (["compile", str(plain)], ["train", "no-such-log", "--out", str(tmp_path / "m.pt"), "--compile"]):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 1
        assert "install g++" in result.output
    assert compiled_digest(plain) is None


def test_what_is_no_artifact_is_refused(tmp_path):
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"junk")
    for path in (junk, tmp_path / "none.pt"):
        result = CliRunner().invoke(cli, ["compile", str(path)])
        assert result.exit_code == 1
        assert "error" in result.output
    assert "Traceback" not in result.output
    assert junk.read_bytes() == b"junk"
