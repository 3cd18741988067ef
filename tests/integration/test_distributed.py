"""Training on several processes, started by torchrun as a user does, or with its variables from a warm process."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.redis_servers import free_port

from training.commands.train import run_train
from training.config import RunConfig, TrainOptions
from training.config_file import ConfigError
from training.data.dataset import batches
from training.data.prepare import prepare
from training.runtime.distributed import SINGLE_PROCESS, Workers
from training.synthetic import PRESETS, generate, write

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# No dropout: its draws are each process's own.
OPTIONS = (
    "--device", "cpu", "--epochs", "2", "--batch-sessions", "63", "--dropout", "0", "--no-lightgbm",
    "--set", "pretraining.epochs=0", "--set", "teacher.folds=0", "--set", "fit.teacher_weight=0.0",
)  # fmt: skip
# All three steps of the recipe, each as short as it gets; the loss is against the soft targets alone.
WHOLE_RECIPE = (
    "--device", "cpu", "--epochs", "1", "--batch-sessions", "63", "--dropout", "0", "--no-lightgbm",
    "--set", "pretraining.epochs=1", "--set", "sizes.hidden_size=16", "--set", "fit.teacher_weight=1.0",
    "--set", "teacher.folds=2", "--set", "teacher.least_buyers=20",
)  # fmt: skip


def run(*command: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode == 0) == (expect == 0), done.stdout + done.stderr
    return done


def run_two(*command: str | Path) -> tuple[str, str]:
    """Start two processes with the variables that torchrun gives them; return what they printed, and their errors."""
    torchrun = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | torchrun | {"RANK": rank, "LOCAL_RANK": rank},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    with ThreadPoolExecutor() as threads:
        said = list(threads.map(lambda process: process.communicate(timeout=280), started))
    stdout, stderr = ("".join(texts) for texts in zip(*said, strict=True))
    assert [process.returncode for process in started] == [0, 0], stderr
    return stdout, stderr


def weights(artifact: Path) -> dict[str, torch.Tensor]:
    return dict(torch.jit.load(str(artifact)).state_dict())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    log = folder / "shop.parquet"
    write(generate(PRESETS["default"], 1000, seed=3), log)
    prepare(log, folder / "prepared", shard_bytes=log.stat().st_size // 3)
    return folder / "prepared"


def test_two_processes_come_to_the_weights_of_one_and_one_of_them_writes(prepared, warm_commands, tmp_path) -> None:
    alone, together = tmp_path / "alone" / "model.pt", tmp_path / "together" / "model.pt"
    # Given a run of one process
    command = (warm_commands / "willbuy", "train", prepared)
    run(*command, "--out", alone, *OPTIONS)
    # When two do the same, with the encoded sessions in files that they share
    stdout, _ = run_two(*command, "--out", together, "--memory-mib", "0", *OPTIONS)
    # Then the weights are the same to rounding, and not by chance the initial ones
    expected = weights(alone)
    for name, value in weights(together).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-5)
    # And one process reported, and nothing else is left
    assert stdout.count("willbuy serve --artifact") == 1
    assert sorted(path.name for path in together.parent.iterdir()) == sorted(
        path.name for path in alone.parent.iterdir()
    )


def test_pretraining_and_distillation_by_two_processes_equal_those_by_one(prepared, warm_commands, tmp_path) -> None:
    alone, together = tmp_path / "alone.pt", tmp_path / "together.pt"
    # Given a run of one process with pre-training, distillation and fit
    command = (warm_commands / "willbuy", "train", prepared)
    run(*command, "--out", alone, *WHOLE_RECIPE)
    # When two do the same, of which the first fits the teacher
    _, stderr = run_two(*command, "--out", together, *WHOLE_RECIPE)
    # Then there was a teacher, and the weights are the same but for what rounding does to trees on the cell's output;
    # a process that had not heard the teacher, or none of them, would be off by some thousandths
    assert "the network learns from the outcomes alone" not in " ".join(stderr.split())
    expected = weights(alone)
    for name, value in weights(together).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-4)


def test_a_process_that_fails_ends_the_run_and_the_others_say_so() -> None:
    done = run(*TORCHRUN, "tests/support/lost_worker.py", expect=1)
    assert "error: the second process fails" in done.stderr
    assert "planted" in done.stderr


def test_a_run_that_broke_off_goes_on_as_if_it_had_not_in_every_process(prepared, tmp_path) -> None:
    done = run(*TORCHRUN, "tests/support/resumed_workers.py", str(prepared), str(tmp_path / "run.checkpoint"))
    assert sorted(done.stdout.split("\n")[:2]) == ["process 0: 2 epochs", "process 1: 2 epochs"]


def test_what_one_process_has_to_do_is_refused_clearly(prepared, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("training.commands.train.join", lambda device: nullcontext(Workers(count=2)))
    with pytest.raises(ConfigError, match="--search: is done by one process"):
        run_train(prepared, tmp_path / "model.pt", RunConfig(), TrainOptions(search=2))
    with pytest.raises(ConfigError, match=r"shop.parquet: several processes need prepared sessions"):
        run_train(prepared.parent / "shop.parquet", tmp_path / "model.pt", RunConfig())


@pytest.mark.parametrize("count", [2, 3])
def test_shares_of_a_batch_hold_each_session_once_and_about_the_same_work(count: int) -> None:
    lengths = torch.randint(1, 60, (500,), generator=torch.Generator().manual_seed(0))
    for chosen in batches(lengths, 64, torch.Generator().manual_seed(1), bucket_batches=4):
        shares = [replace(Workers(count=count), rank=rank).share_of(chosen) for rank in range(count)]
        assert torch.cat(shares).sort().values.tolist() == chosen.sort().values.tolist()
        work = [int(lengths[share].sum()) for share in shares]
        assert max(work) - min(work) <= 60


def test_one_process_alone_needs_no_other() -> None:
    assert SINGLE_PROCESS.total(1.5, 2.0) == [1.5, 2.0]
    assert SINGLE_PROCESS.gather("here") == ["here"]
    assert SINGLE_PROCESS.broadcast({"a": 1}) == {"a": 1}
    assert SINGLE_PROCESS.first
    assert SINGLE_PROCESS.first_here
