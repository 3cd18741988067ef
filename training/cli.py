"""The training side of the command line: prepare, train, ladder, synthesize, replay, demo.

Heavy packages are imported inside the commands, so that `willbuy --help` answers at once, and answers where the
training packages are not installed.
"""

import asyncio
import importlib.util
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from training.commands.console import ERR, OUT, errors_for_people, tell

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn past sessions into a model that scores running ones.",
)
_TRAINING_PACKAGES: Final = ("polars", "sklearn", "lightgbm", "matplotlib", "jinja2", "httpx")
_GATE_CLOSED: Final = 3
_DATA: Final = "Data"
_MODEL: Final = "Model"
_ASSUMPTIONS: Final = "Assumptions"


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class CellKind(StrEnum):
    """What the network remembers with (`model.cells`)."""

    FEED_FORWARD = "feed-forward"
    RNN = "rnn"
    GRU = "gru"
    LSTM = "lstm"


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


BaseRateOption = Annotated[
    float | None,
    typer.Option(
        "--base-rate",
        help="Share of sessions that buy, to shift the answers to; by default as trained, or as the service does.",
    ),
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
    from training.commands.prepare import PREPARE_ERRORS, LogOptions, run_prepare  # noqa: PLC0415  # heavy, see above

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
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="Prepared sessions, or a log in a known format.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The artifact to write.", show_default=False)] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="TOML file of settings, such as a run leaves; flags win over it."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the file, repeatable: fit.bucket_batches=8."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Write the settings as TOML to standard output, and stop.")
    ] = False,  # a flag
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
    allow_suspect: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-suspect",
            metavar="NAME",
            help="Use this input though it seems to know the future (docs/leaks.md); repeatable.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data at most.", rich_help_panel=_MODEL)] = 15,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better validation loss.", rich_help_panel=_MODEL)
    ] = 5,
    cell: Annotated[
        CellKind, typer.Option(help="What the network remembers with (docs/ladder.md).", rich_help_panel=_MODEL)
    ] = CellKind.LSTM,
    aggregates: Annotated[
        bool,
        typer.Option(help="See running counts, sums and times beside the current event.", rich_help_panel=_MODEL),
    ] = True,
    hidden_size: Annotated[int, typer.Option(min=1, help="Units of a recurrent layer.", rich_help_panel=_MODEL)] = 128,
    layers: Annotated[int, typer.Option(min=1, max=8, help="Recurrent layers.", rich_help_panel=_MODEL)] = 1,
    head_size: Annotated[int, typer.Option(min=1, help="Units of the head.", rich_help_panel=_MODEL)] = 64,
    dropout: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.95,
            help="Share of units dropped while training; of inputs, half of it.",
            rich_help_panel=_MODEL,
        ),
    ] = 0.2,
    quantile_bins: Annotated[
        int,
        typer.Option(min=1, max=256, help="Quantile bins of each feature; 1 turns them off.", rich_help_panel=_MODEL),
    ] = 12,
    batch_sessions: Annotated[int, typer.Option(min=1, help="Sessions a step.", rich_help_panel=_MODEL)] = 128,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.", rich_help_panel=_MODEL)] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.", rich_help_panel=_MODEL)] = 0.01,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order, dropout, split and search.")] = 0,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.AUTO,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of this run.")
    ] = False,  # a flag
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads; one is quickest for a small network.")] = 1,
    memory_mib: Annotated[
        int, typer.Option(min=0, help="Encoded sessions larger than this are kept in files while it trains.")
    ] = 4096,
    scratch: Annotated[
        Path | None,
        typer.Option(help="Folder for those files, on a disk with room for them.", show_default="beside --out"),
    ] = None,
    lightgbm: Annotated[bool, typer.Option(help="Fit LightGBM for comparison.")] = True,
    search: Annotated[
        int | None, typer.Option("--search", min=1, help="Try this many settings first, and train with the best.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Artifact of an earlier model to go on from, on newer data.")
    ] = None,
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
    from training.commands.train import TRAIN_ERRORS, TrainRequest, run_train  # noqa: PLC0415  # same
    from training.config import read_config  # noqa: PLC0415  # heavy, see the module's docstring
    from training.data.training_set import Room  # noqa: PLC0415  # same

    chosen = {"all": None, "none": []}.get(properties, [name.strip() for name in properties.split(",")])
    # What each option sets in the configuration.
    settings: dict[str, dict[str, Any]] = {
        "log_format": {"log.format": log_format},
        "mapping": {"log.mapping": mapping and str(mapping)},
        "idle_timeout_s": {"log.idle_timeout_s": idle_timeout_s},
        "keep_open_sessions": {"log.keep_open_sessions": keep_open_sessions},
        "properties": {"properties": chosen},
        "allow_suspect": {"leaks.allow_suspect": allow_suspect or []},
        "epochs": {"fit.epochs": epochs},
        "patience": {"fit.patience": patience},
        "cell": {"sizes.cell": cell.value},
        "aggregates": {"sizes.aggregates": aggregates},
        "hidden_size": {"sizes.hidden_size": hidden_size},
        "layers": {"sizes.layers": layers},
        "head_size": {"sizes.head_size": head_size},
        "dropout": {"sizes.dropout": dropout, "sizes.input_dropout": dropout / 2},
        "quantile_bins": {"quantile_bins": quantile_bins},
        "batch_sessions": {"fit.batch_sessions": batch_sessions},
        "learning_rate": {"fit.learning_rate": learning_rate},
        "weight_decay": {"fit.weight_decay": weight_decay},
        "seed": {"fit.seed": seed, "split_seed": seed},
        "device": {"compute.device": device.value},
        "threads": {"compute.threads": threads},
        "lightgbm": {"lightgbm": lightgbm},
    }

    @errors_for_people(*TRAIN_ERRORS)
    def work() -> None:
        effective = read_config(config, _given(context, settings), assignments or [])
        if print_config:
            typer.echo(effective.to_toml(), nl=False)
            return
        if data is None or out is None:
            raise typer.BadParameter("is needed", param_hint="DATA" if data is None else "--out")
        room = Room(memory_mib, scratch or out.parent)
        run_train(TrainRequest(data, out, effective, resume, posterior, search or 0, start, room))

    work()


def _given(context: typer.Context, settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of those options that the command line names: what it leaves out, a file may say."""
    sources = {option: context.get_parameter_source(option) for option in settings}
    named = [option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return {key: value for option in named for key, value in settings[option].items()}


@cli.command(rich_help_panel="Training")
def evaluate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The model to judge.", show_default=False)],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Prepared sessions, or a log in a known format.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="HTML file to write, the same as JSON beside it.", show_default="beside ARTIFACT"),
    ] = None,
    log_format: FormatOption = "auto",
    mapping: MappingOption = None,
    beside: Annotated[
        list[str] | None,
        typer.Option("--beside", metavar="NAME=ARTIFACT", help="Another model to judge with it; repeatable."),
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Fit baselines for comparison.")] = True,
    baseline_data: Annotated[
        Path | None, typer.Option(help="Prepared sessions to fit the baselines on.", rich_help_panel=_DATA)
    ] = None,
    baseline_sessions: Annotated[
        int, typer.Option(min=100, help="Sessions to fit the baselines on at most.", rich_help_panel=_DATA)
    ] = 20_000,
    all_sessions: Annotated[
        bool,
        typer.Option(
            "--all-sessions", help="Judge on sessions that a model was trained on, too.", rich_help_panel=_DATA
        ),
    ] = False,  # a flag
    sessions: Annotated[
        int, typer.Option(min=1, help="A random sample of so many where there are more.", rich_help_panel=_DATA)
    ] = 20_000,
    posterior: Annotated[
        Path | None,
        typer.Option(
            help="Exact posterior of a synthetic log (NAME.posterior.parquet), shown as the optimum.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    base_rate: Annotated[
        float | None, typer.Option(help="Share of sessions that buy, where it differs from the training's.")
    ] = None,
    precision: Annotated[
        float, typer.Option(help="Share of the alarmed sessions that shall buy.", rich_help_panel=_ASSUMPTIONS)
    ] = 0.5,
    alarm_share: Annotated[
        float, typer.Option(help="Share of the sessions that shall be alarmed.", rich_help_panel=_ASSUMPTIONS)
    ] = 0.1,
    margin: Annotated[float, typer.Option(help="Earned by a purchase.", rich_help_panel=_ASSUMPTIONS)] = 30.0,
    cost: Annotated[float, typer.Option(help="Of contacting a session.", rich_help_panel=_ASSUMPTIONS)] = 0.3,
    uplift: Annotated[
        float,
        typer.Option(
            help="How many more purchases a contact is assumed to make, as a share of those there would have been.",
            rich_help_panel=_ASSUMPTIONS,
        ),
    ] = 0.1,
    bootstrap: Annotated[int, typer.Option(min=20, help="How often the sessions are resampled.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of samples, baselines and bootstrap.")] = 0,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads.")] = 1,
) -> None:
    """Judge a model on sessions that it has not seen: by prefix length, with intervals, beside baselines.

    Writes one HTML report and the same as JSON. Where the artifact was trained on DATA, its test part is judged.
    """
    _require_training_packages()
    from training.commands.evaluate import run_evaluate  # noqa: PLC0415  # same
    from training.commands.evaluate_request import EVALUATE_ERRORS, EvaluateRequest  # noqa: PLC0415  # heavy, see above
    from training.evaluation import Offer, Wanted  # noqa: PLC0415  # same
    from training.report import Assumptions  # noqa: PLC0415  # same

    @errors_for_people(*EVALUATE_ERRORS)
    def work() -> None:
        run_evaluate(
            EvaluateRequest(
                artifact,
                data,
                out,
                beside or [],
                baseline_data,
                posterior,
                log_format,
                mapping,
                Wanted(baselines, all_sessions, sessions, baseline_sessions),
                Assumptions(Offer(margin, cost, uplift), precision, alarm_share),
                base_rate,
                bootstrap,
                seed,
                threads,
            )
        )

    work()


@cli.command(rich_help_panel="Training")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The artifact that is there.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="The artifact that may follow it.", show_default=False)],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Prepared sessions, or a log in a known format.", show_default=False)
    ],
    log_format: FormatOption = "auto",
    mapping: MappingOption = None,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with status 3 unless B is not worse.")] = False,  # a flag
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, help="With --gate: B must be shown to be worse by less than so many nats."),
    ] = None,
    all_sessions: Annotated[
        bool, typer.Option("--all-sessions", help="Compare on sessions that a model was trained on, too.")
    ] = False,  # a flag
    sessions: Annotated[int, typer.Option(min=1, help="A random sample of so many where there are more.")] = 20_000,
    bootstrap: Annotated[int, typer.Option(min=100, help="How often the sessions are resampled.")] = 2_000,
    seed: Annotated[int, typer.Option(min=0, help="Of sample and bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,  # a flag
) -> None:
    """Say with an interval whether artifact B is better than artifact A, on sessions that neither has seen.

    The exit status is 0 whatever the verdict, and with --gate 3 where B is worse, over all prefixes or at any length.
    """
    _require_training_packages()
    from training.commands.compare import COMPARE_ERRORS, CompareRequest, run_compare  # noqa: PLC0415  # heavy, see above

    @errors_for_people(*COMPARE_ERRORS)
    def work() -> bool:
        request = CompareRequest(
            a, b, data, log_format, mapping, all_sessions, sessions, bootstrap, seed, as_json=as_json
        )
        return run_compare(request).passes(tolerance)

    if not work() and gate:
        raise typer.Exit(_GATE_CLOSED)


@cli.command(rich_help_panel="Training")
def ladder(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Prepared sessions, or a log in a known format.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the artifacts.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file of settings, as `willbuy train` takes it.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the file, repeatable: fit.epochs=8."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="RUNG", help="Only these, repeatable: lstm, gru-no-aggregates."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, order, dropout and split.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the models that are there, and go on with the others.")
    ] = False,  # a flag
    posterior: Annotated[Path | None, typer.Option(help="Exact posterior of a synthetic log.")] = None,
) -> None:
    """Train the ladder: feed-forward, plain recurrent, GRU and LSTM networks, each with and without running aggregates.

    Each is `willbuy train` with `--cell` and `--aggregates` or `--no-aggregates`. The report in the folder says what
    memory and gates buy; docs/ladder.md shows it on two logs.
    """
    _require_training_packages()
    from training.commands.evaluate_request import EVALUATE_ERRORS  # noqa: PLC0415  # same
    from training.commands.ladder import run_ladder, rungs_of  # noqa: PLC0415  # same
    from training.commands.train import TRAIN_ERRORS  # noqa: PLC0415  # same
    from training.config import read_config  # noqa: PLC0415  # heavy, see the module's docstring

    @errors_for_people(*TRAIN_ERRORS, *EVALUATE_ERRORS)
    def work() -> None:
        flags = {} if seed is None else {"fit.seed": seed, "split_seed": seed}
        chosen = read_config(config, flags, assignments or [])
        run_ladder(data, out, chosen, resume=resume, posterior=posterior, rungs=rungs_of(only or []))

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
    base_rate: BaseRateOption = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="WILLBUY_API_KEY",
            help="Key of the service, with the scopes events:write and sessions:read.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Play unseen sessions at a running service, event by event, and compare each answer with the offline model.

    Fails when an answer differs from the offline model's by more than the tolerance.
    """
    _require_training_packages()
    from model.artifact import ArtifactError  # noqa: PLC0415  # heavy, see the module's docstring
    from training.commands.replay import run_replay  # noqa: PLC0415  # same
    from training.commands.replay_sessions import ReplayError  # noqa: PLC0415  # same
    from training.data.sources.errors import SourceError  # noqa: PLC0415  # same

    @errors_for_people(ReplayError, ArtifactError, SourceError, ValueError, OSError)
    def work() -> bool:
        return asyncio.run(
            run_replay(data, artifact, url, sessions, part.value, concurrency, tolerance, base_rate, api_key)
        )

    if not work():
        raise typer.Exit(1)


@cli.command(rich_help_panel="Serving")
def collect(
    out: Annotated[Path, typer.Option("--out", help="Folder for Parquet files, which `willbuy train` takes as it is.")],
    redis_url: Annotated[
        str, typer.Option("--redis-url", envvar="WILLBUY_REDIS_URL", help="The service's Redis.", show_envvar=True)
    ] = "redis://127.0.0.1:6379/0",
    redis_ca_file: Annotated[
        Path | None,
        typer.Option(
            "--redis-ca-file", envvar="WILLBUY_REDIS_CA_FILE", help="Certificate authorities of rediss:// URLs, in PEM."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--once", help="Go on with what comes until Ctrl-C, or end with what is there.")
    ] = False,
    every_s: Annotated[
        float, typer.Option("--every-s", min=1.0, help="With --follow: seconds between two files at least.")
    ] = 60.0,
    sessions_a_file: Annotated[
        int, typer.Option("--sessions-per-file", min=1, help="Sessions of one file at most, about.")
    ] = 10_000,
    group: Annotated[
        str, typer.Option("--group", help="Consumer group; another one gets every session once more.")
    ] = "willbuy",
    consumer: Annotated[
        str, typer.Option("--consumer", help="Name within the group; one for each folder.")
    ] = "collect",
) -> None:
    """Collect the sessions that ended at a running service, with what became of them, to train on.

    Each session once, whatever is broken off: run it again and it goes on where it was (docs/outcomes.md).
    """
    _require_training_packages()
    from training.commands.collect import COLLECT_ERRORS, run_collect  # noqa: PLC0415  # heavy, see the module's docstring

    errors_for_people(*COLLECT_ERRORS)(run_collect)(
        redis_url,
        out,
        redis_ca_file=redis_ca_file,
        group=group,
        consumer=consumer,
        follow=follow,
        sessions_a_file=sessions_a_file,
        every_s=every_s,
    )


@cli.command(rich_help_panel="Serving")
def demo(
    sessions: Annotated[int, typer.Option(min=500, help="Past sessions to train on.")] = 15_000,
    seconds: Annotated[float | None, typer.Option(min=1.0, help="Stop after so long; by default at Ctrl-C.")] = None,
    shoppers: Annotated[int, typer.Option(min=1, max=500, help="Shoppers in the shop at the same time.")] = 12,
    speed: Annotated[float, typer.Option(min=1.0, help="How much faster than life they act.")] = 20.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the service; 0 takes a free one.")] = 0,
    folder: Annotated[Path, typer.Option(help="Where log, artifact and report go.")] = Path("artifacts/demo"),
    url: Annotated[
        str | None,
        typer.Option(help="Play at this service, and train and start nothing.", show_default=False),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="WILLBUY_API_KEY", help="Key of the service at --url.", show_default=False)
    ] = None,
) -> None:
    """Train on a synthetic shop, start Redis and the service, and play shoppers at it until Ctrl-C."""
    _require_training_packages()
    from training.commands.demo import DemoError, run_demo, run_shoppers  # noqa: PLC0415  # heavy, see the module's docstring
    from training.commands.replay_sessions import ReplayError  # noqa: PLC0415  # same

    @errors_for_people(DemoError, ReplayError, ValueError, OSError)
    def work() -> None:
        if url is not None:
            run_shoppers(url, seconds=seconds, shoppers=shoppers, speed=speed, api_key=api_key)
            return
        run_demo(folder, sessions=sessions, seconds=seconds, shoppers=shoppers, speed=speed, port=port)

    work()
