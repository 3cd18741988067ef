"""The training side of the command line: prepare, train, synthesize, replay, demo.

Heavy packages are imported inside the commands, so that `willbuy --help` answers at once, and answers where the
training packages are not installed.
"""

import asyncio
import importlib.util
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from training.console import ERR, OUT, errors_for_people, tell

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn past sessions into a model that scores running ones.",
)
_TRAINING_PACKAGES: Final = ("polars", "sklearn", "lightgbm", "matplotlib", "jinja2", "httpx")
_DATA: Final = "Data"
_MODEL: Final = "Model"


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Part(StrEnum):
    """A part of the split."""

    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"
    TEST = "test"


FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        help="auto, rees46, diginetica, yoochoose, retailrocket, clickstreamdmm, canonical or mapping.",
        rich_help_panel=_DATA,
    ),
]
MappingOption = Annotated[
    Path | None,
    typer.Option(
        "--mapping", help="TOML file that says which column is what (docs/event-table.md).", rich_help_panel=_DATA
    ),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", help="FIELD=COLUMN, repeatable: session_id=sid.", rich_help_panel=_DATA),
]
EventOption = Annotated[
    list[str] | None,
    typer.Option("--event", help="THEIRS=OURS, repeatable: cart=add_to_cart.", rich_help_panel=_DATA),
]
PropertyColumnOption = Annotated[
    list[str] | None,
    typer.Option("--property", help="NAME=COLUMN, repeatable: device=dev.", rich_help_panel=_DATA),
]
TimeFormatOption = Annotated[
    str | None,
    typer.Option(
        "--time-format",
        help="iso, epoch_s, epoch_ms, elapsed_s, elapsed_ms, or a strptime pattern.",
        rich_help_panel=_DATA,
    ),
]
SeparatorOption = Annotated[
    str | None, typer.Option("--separator", help="Character between fields of a CSV.", rich_help_panel=_DATA)
]
IdleOption = Annotated[
    float, typer.Option("--idle-timeout-s", help="Idle seconds that end a session.", rich_help_panel=_DATA)
]
KeepOpenOption = Annotated[
    bool,
    typer.Option("--keep-open-sessions", help="Keep sessions that the log's end cuts off.", rich_help_panel=_DATA),
]


def _require_training_packages() -> None:
    missing = [name for name in _TRAINING_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        ERR.print(f'error: {", ".join(missing)} not installed: pip install "willbuy[train]"', markup=False)
        raise typer.Exit(1)


@cli.command(rich_help_panel="Training")
def prepare(
    source: Annotated[Path, typer.Argument(metavar="LOG", help="A log: a file, or a folder of files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the prepared sessions.")],
    log_format: FormatOption = "auto",
    mapping: MappingOption = None,
    column: ColumnOption = None,
    event: EventOption = None,
    property_column: PropertyColumnOption = None,
    time_format: TimeFormatOption = None,
    separator: SeparatorOption = None,
    idle_timeout_s: IdleOption = 1800.0,
    keep_open_sessions: KeepOpenOption = False,  # typer's way to say a flag
) -> None:
    """Turn a clickstream log into prepared sessions: ordered, cut before the purchase, malformed rows reported."""
    _require_training_packages()
    from training.run_prepare import PREPARE_ERRORS, LogOptions, run_prepare  # noqa: PLC0415  # heavy, see above

    options = LogOptions(
        format=log_format,
        mapping=mapping,
        columns=column or [],
        events=event or [],
        properties=property_column or [],
        time_format=time_format,
        separator=separator,
        idle_timeout_s=idle_timeout_s,
        keep_open_sessions=keep_open_sessions,
    )
    errors_for_people(*PREPARE_ERRORS)(run_prepare)(source, out, options)
    OUT.print(f"\nNext: [bold]willbuy train {out} --out model.pt[/bold]")


@cli.command(rich_help_panel="Training")
def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Prepared sessions, or a log in a known format.")],
    out: Annotated[Path, typer.Option("--out", help="The artifact to write.")],
    log_format: FormatOption = "auto",
    mapping: MappingOption = None,
    idle_timeout_s: IdleOption = 1800.0,
    keep_open_sessions: KeepOpenOption = False,  # typer's way to say a flag
    properties: Annotated[
        str,
        typer.Option(
            help="Names of the properties that the model uses, separated by commas; all, or none.",
            rich_help_panel=_DATA,
        ),
    ] = "all",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data at most.", rich_help_panel=_MODEL)] = 20,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better validation loss.", rich_help_panel=_MODEL)
    ] = 5,
    hidden_size: Annotated[int, typer.Option(min=1, help="Units of the LSTM.", rich_help_panel=_MODEL)] = 32,
    layers: Annotated[int, typer.Option(min=1, max=8, help="Layers of the LSTM.", rich_help_panel=_MODEL)] = 1,
    head_size: Annotated[int, typer.Option(min=1, help="Units of the head.", rich_help_panel=_MODEL)] = 64,
    dropout: Annotated[
        float, typer.Option(min=0.0, max=0.95, help="Share of units dropped while training.", rich_help_panel=_MODEL)
    ] = 0.3,
    quantile_bins: Annotated[
        int,
        typer.Option(min=1, max=256, help="Quantile bins of each feature; 1 turns them off.", rich_help_panel=_MODEL),
    ] = 12,
    batch_sessions: Annotated[int, typer.Option(min=1, help="Sessions a step.", rich_help_panel=_MODEL)] = 128,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.", rich_help_panel=_MODEL)] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.", rich_help_panel=_MODEL)] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order, dropout and split.")] = 0,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.AUTO,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of this run.")
    ] = False,  # a flag
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads; one is quickest for a small network.")] = 1,
    lightgbm: Annotated[bool, typer.Option(help="Fit LightGBM for comparison.")] = True,
    posterior: Annotated[
        Path | None,
        typer.Option(
            help="Exact posterior of a synthetic log (NAME.posterior.parquet), shown as the optimum.",
            rich_help_panel=_DATA,
        ),
    ] = None,
) -> None:
    """Train on past sessions and write the artifact, with a table and an HTML report beside it.

    DATA is a folder that `willbuy prepare` wrote, or a log in a known format, which is prepared on the fly.
    """
    _require_training_packages()
    from model.artifact import ArtifactError  # noqa: PLC0415  # heavy, see the module's docstring
    from model.network import NetworkSizes  # noqa: PLC0415  # same
    from training.checkpoint import CheckpointError  # noqa: PLC0415  # same
    from training.loop import FitSettings  # noqa: PLC0415  # same
    from training.prepared import is_prepared, read_prepared  # noqa: PLC0415  # same
    from training.run import run_training  # noqa: PLC0415  # same
    from training.run_prepare import PREPARE_ERRORS, LogOptions, run_prepare  # noqa: PLC0415  # same
    from training.settings import TrainSettings  # noqa: PLC0415  # same
    from training.train import TrainingError  # noqa: PLC0415  # same

    @errors_for_people(*PREPARE_ERRORS, TrainingError, CheckpointError, ArtifactError, OSError)
    def work() -> None:
        chosen = {"all": None, "none": ()}.get(properties, tuple(name.strip() for name in properties.split(",")))
        settings = TrainSettings(
            fit=FitSettings(epochs, patience, batch_sessions, learning_rate, weight_decay, seed=seed),
            sizes=NetworkSizes(hidden_size, layers, head_size, dropout, dropout / 3),
            properties=chosen,
            split_seed=seed,
            quantile_bins=quantile_bins,
            lightgbm=lightgbm,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="willbuy-") as temporary:
            if is_prepared(data):
                dataset = read_prepared(data)
            else:
                folder = Path(temporary) / "prepared"
                options = LogOptions(
                    format=log_format,
                    mapping=mapping,
                    idle_timeout_s=idle_timeout_s,
                    keep_open_sessions=keep_open_sessions,
                )
                rejected = out.with_name(f"{out.stem}.rejected.csv")
                dataset = run_prepare(data, folder, options, keep_rejected=rejected)
            run_training(
                dataset, settings, out, device=device.value, threads=threads, resume=resume, posterior=posterior
            )

    work()


@cli.command(rich_help_panel="Training")
def synthesize(
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write; the posterior goes beside it.")],
    sessions: Annotated[int, typer.Option(min=1, help="How many sessions.")] = 20_000,
    shape: Annotated[str, typer.Option(help="default, low-base-rate, long-sessions or long-tail.")] = "default",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same log.")] = 0,
) -> None:
    """Write a log of a synthetic shop, whose best possible prediction is known exactly."""
    _require_training_packages()
    from training.synthetic import PRESETS, generate, write  # noqa: PLC0415  # heavy, see the module's docstring

    @errors_for_people(ValueError, OSError)
    def work() -> None:
        if shape not in PRESETS:
            raise ValueError(f"--shape: {shape!r} is none of {', '.join(PRESETS)}")
        out.parent.mkdir(parents=True, exist_ok=True)
        log = generate(PRESETS[shape], sessions, seed)
        posterior = write(log, out)
        tell(f"{sessions:,} sessions, {log.events.height:,} events in {out}")
        tell(f"P(purchase | prefix) of each prefix in {posterior}")
        tell(f"\nNext: willbuy train {out} --posterior {posterior} --out model.pt")

    work()


@cli.command(rich_help_panel="Serving")
def replay(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="What the artifact was trained on.")],
    artifact: Annotated[Path, typer.Option("--artifact", help="The artifact that the service runs.")],
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
    sessions: Annotated[int, typer.Option(min=1, help="How many sessions at most.")] = 500,
    part: Annotated[
        Part, typer.Option(help="Part of the split to play; training has not seen the test part.")
    ] = Part.TEST,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Sessions played at the same time.")] = 8,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest difference; by default 2e-3 with float16 state, 1e-5 with float32.")
    ] = None,
) -> None:
    """Play unseen sessions at a running service, event by event, and compare each answer with the offline model.

    Fails when an answer differs from the offline model's by more than the tolerance.
    """
    _require_training_packages()
    from model.artifact import ArtifactError  # noqa: PLC0415  # heavy, see the module's docstring
    from training.replay import ReplayError  # noqa: PLC0415  # same
    from training.run import run_replay  # noqa: PLC0415  # same
    from training.sources.errors import SourceError  # noqa: PLC0415  # same

    @errors_for_people(ReplayError, ArtifactError, SourceError, ValueError, OSError)
    def work() -> bool:
        return asyncio.run(run_replay(data, artifact, url, sessions, part.value, concurrency, tolerance))

    if not work():
        raise typer.Exit(1)


@cli.command(rich_help_panel="Serving")
def demo(
    sessions: Annotated[int, typer.Option(min=500, help="Past sessions to train on.")] = 15_000,
    seconds: Annotated[float | None, typer.Option(min=1.0, help="Stop after so long; by default at Ctrl-C.")] = None,
    shoppers: Annotated[int, typer.Option(min=1, max=500, help="Shoppers in the shop at the same time.")] = 12,
    speed: Annotated[float, typer.Option(min=1.0, help="How much faster than life they act.")] = 20.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the service; 0 takes a free one.")] = 0,
    folder: Annotated[Path, typer.Option(help="Where log, artifact and report go.")] = Path("artifacts/demo"),
) -> None:
    """Train on a synthetic shop, start Redis and the service, and play shoppers at it until Ctrl-C."""
    _require_training_packages()
    from training.demo import DemoError, run_demo  # noqa: PLC0415  # heavy, see the module's docstring
    from training.replay import ReplayError  # noqa: PLC0415  # same

    @errors_for_people(DemoError, ReplayError, ValueError, OSError)
    def work() -> None:
        run_demo(folder, sessions=sessions, seconds=seconds, shoppers=shoppers, speed=speed, port=port)

    work()
