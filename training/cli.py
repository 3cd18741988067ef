"""The training commands of the command line.

Options come from the settings dataclasses of `training.config` (`training.commands.options`). Only arguments, and the
options that name the file or folder of a command, are in the signatures below. The commands import heavy
packages themselves, so that `willbuy --help` answers at once, and also without the training packages installed.
"""

import asyncio
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from training.commands.console import ERR, OUT, errors_for_people, print_line
from training.commands.options import ConfigFlags, with_options
from training.config import (
    QUICK_SETTINGS,
    CheckSettings,
    CollectSettings,
    ColumnOptions,
    CompareSettings,
    ConfigOptions,
    DemoSettings,
    DryRun,
    EvaluateSettings,
    LogSettings,
    PredictSettings,
    ReplaySettings,
    SynthesizeSettings,
    TrainOptions,
)

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn past sessions into a model that scores running ones.",
)
_TRAINING_PACKAGES: Final = ("polars", "sklearn", "lightgbm", "matplotlib", "jinja2", "httpx", "zstandard")
_GATE_CLOSED: Final = 3

DataArgument = Annotated[
    Path, typer.Argument(metavar="DATA", help="Prepared sessions, or a log in a known format.", show_default=False)
]

_interventions: Final = typer.Typer(
    name="interventions", no_args_is_help=True, help="Rules that act on a score: try them on past sessions."
)
cli.add_typer(_interventions, rich_help_panel="Serving")


def _command(
    panel: str, name: str | None = None, group: typer.Typer = cli
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command with generated options; it fails with one line where a training package is missing."""

    def register(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def checked(**values: Any) -> None:  # noqa: ANN401  # whatever typer parsed
            missing = [name for name in _TRAINING_PACKAGES if importlib.util.find_spec(name) is None]
            if missing:
                ERR.print(
                    f'error: {", ".join(missing)} not installed: run pip install ".[train]" in a checkout of willbuy',
                    markup=False,
                )
                raise typer.Exit(1)
            command(**values)

        return group.command(name, rich_help_panel=panel)(with_options(checked))

    return register


@_command("Training")
def prepare(
    source: Annotated[Path, typer.Argument(metavar="LOG", help="A log: a file, or a folder of files.")],
    log: LogSettings,
    columns: ColumnOptions,
    look: DryRun,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the prepared sessions.", show_default=False)
    ] = None,
) -> None:
    """Turn a clickstream log into prepared sessions: ordered, cut before the purchase, malformed rows reported.

    Ends with a summary of what became of the rows, in the terminal and as `log.html` in the folder.
    """
    from training.commands.prepare import PREPARE_ERRORS, run_dry, run_prepare  # noqa: PLC0415  # heavy, see above

    with errors_for_people(*PREPARE_ERRORS):
        if look.dry_run:
            run_dry(source, log, columns, look.rows)
            return
        if out is None:
            raise typer.BadParameter("is needed, unless with --dry-run", param_hint="--out")
        run_prepare(source, out, log, columns)
    OUT.print(f"\nNext: [bold]willbuy train {out} --out model.pt[/bold]")


@_command("Training")
def train(
    flags: ConfigFlags,
    source: ConfigOptions,
    options: TrainOptions,
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="Prepared sessions, or a log in a known format.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The artifact to write.", show_default=False)] = None,
) -> None:
    """Train on past sessions and write the artifact, with a table and an HTML report beside it.

    DATA is a folder that `willbuy prepare` wrote, or a log in a known format, which is prepared first.
    """
    from training.commands.train import TRAIN_ERRORS, run_train  # noqa: PLC0415  # heavy, see above
    from training.config_file import read_config, to_toml  # noqa: PLC0415  # same

    # Options that set more, or other, than the key of their name.
    if "properties" in flags:
        named = [name.strip() for name in flags["properties"].split(",")]
        flags["properties"] = {"all": None, "none": []}.get(flags["properties"], named)
    if "sizes.dropout" in flags:
        flags["sizes.input_dropout"] = flags["sizes.dropout"] / 2
    if "fit.seed" in flags:
        flags["split_seed"] = flags["fit.seed"]
    with errors_for_people(*TRAIN_ERRORS):
        quick = QUICK_SETTINGS if options.quick else ()
        effective = read_config(source.config, flags, [*quick, *source.assignments])
        if source.print_config:
            typer.echo(to_toml(effective), nl=False)
            return
        if data is None or out is None:
            raise typer.BadParameter("is needed", param_hint="DATA" if data is None else "--out")
        storage = replace(options.storage, scratch=options.storage.scratch or out.parent)
        run_train(data, out, effective, replace(options, storage=storage))


@_command("Training", name="compile")
def compile_step(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The model to compile.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; by default the artifact itself.", show_default=False)
    ] = None,
) -> None:
    """Compile the model's step for this machine's kind of CPU, so that the service needs less time for each event.

    Needs a C++ compiler, here and not where the service runs. The service uses the compiled step only with the same
    torch and a CPU of the same kind, and TorchScript otherwise.
    """
    from training.commands.compile import COMPILE_ERRORS, run_compile  # noqa: PLC0415  # heavy, see above

    with errors_for_people(*COMPILE_ERRORS):
        run_compile(artifact, out or artifact)


@_command("Training")
def evaluate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The model to evaluate.", show_default=False)],
    data: DataArgument,
    settings: EvaluateSettings,
) -> None:
    """Evaluate a model on sessions that it has not seen: by prefix length, with intervals, beside baselines.

    Writes an HTML report and a JSON file of the same content. Where the artifact was trained on DATA, only the test
    part is used.
    """
    from training.commands.evaluate import EVALUATE_ERRORS, run_evaluate  # noqa: PLC0415  # heavy, see above

    with errors_for_people(*EVALUATE_ERRORS):
        run_evaluate(artifact, data, settings)


@_command("Training")
def predict(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The model.", show_default=False)],
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", help="File to write: .parquet or .csv.", show_default=False)],
    settings: PredictSettings,
) -> None:
    """Write the model's probability after each event of past sessions, as the service would have answered it.

    One row an event before the first purchase: session_id, event (its number), timestamp_ms, event_name, probability.
    """
    from training.commands.predict import PREDICT_ERRORS, run_predict  # noqa: PLC0415  # heavy, see above

    with errors_for_people(*PREDICT_ERRORS):
        written = run_predict(artifact, data, out, settings)
    print_line(f"{written} in {out}")


@_command("Training")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The current artifact.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="The artifact that may replace it.", show_default=False)],
    data: DataArgument,
    settings: CompareSettings,
) -> None:
    """Compare artifact B with artifact A, with intervals, on sessions that neither has seen.

    The exit status is 0 whatever the verdict, and with --gate 3 where B is worse, over all prefixes or at any length.
    """
    from training.commands.compare import COMPARE_ERRORS, run_compare  # noqa: PLC0415  # heavy, see above

    with errors_for_people(*COMPARE_ERRORS):
        passes = run_compare(a, b, data, settings).passes(settings.tolerance)
    if settings.gate and not passes:
        raise typer.Exit(_GATE_CLOSED)


@_command("Training")
def synthesize(
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write; the posterior goes beside it.")],
    settings: SynthesizeSettings,
) -> None:
    """Write a log of a synthetic shop, whose best possible prediction is known exactly."""
    from training.commands.synthesize import run_synthesize  # noqa: PLC0415  # heavy, see above

    with errors_for_people(ValueError, OSError):
        run_synthesize(out, settings)


@_command("Serving")
def replay(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="The data that the artifact was trained on.")],
    artifact: Annotated[Path, typer.Option("--artifact", help="The artifact that the service runs.")],
    settings: ReplaySettings,
) -> None:
    """Replay unseen sessions at a running service, event by event, and compare each answer with the offline model.

    Fails when an answer differs from the offline model's by more than the tolerance.
    """
    from training.commands.replay import REPLAY_ERRORS, run_replay  # noqa: PLC0415  # heavy, see above

    with errors_for_people(*REPLAY_ERRORS):
        agreed = asyncio.run(run_replay(data, artifact, settings))
    if not agreed:
        raise typer.Exit(1)


@_command("Serving")
def collect(
    out: Annotated[Path, typer.Option("--out", help="Folder for Parquet files, which `willbuy train` reads directly.")],
    settings: CollectSettings,
) -> None:
    """Collect ended sessions with their outcomes from a running service, to train on.

    Each session is collected once; an interrupted run continues when it is started again (docs/outcomes.md).
    """
    from training.commands.collect import COLLECT_ERRORS, run_collect  # noqa: PLC0415  # heavy, see above

    with errors_for_people(*COLLECT_ERRORS):
        run_collect(out, settings)


@_command("Serving")
def demo(settings: DemoSettings) -> None:
    """Train on a synthetic shop, start Redis and the service, and play shoppers at it until Ctrl-C."""
    from training.commands.demo import DEMO_ERRORS, run_demo  # noqa: PLC0415  # heavy, see above

    with errors_for_people(*DEMO_ERRORS):
        run_demo(settings)


@_command("Serving", name="check", group=_interventions)
def check_interventions(
    rules: Annotated[Path, typer.Argument(metavar="FILE", help="The TOML file of rules.", show_default=False)],
    data: Annotated[
        Path,
        typer.Argument(metavar="SESSIONS", help="Prepared sessions, or a log in a known format.", show_default=False),
    ],
    settings: CheckSettings,
) -> None:
    """Say how often each rule would have fired on past sessions, when in a session, and on how many later buyers.

    Decides with the service's own code. Where the artifact was trained on SESSIONS, only unseen sessions are used.
    """
    from training.commands.interventions import CHECK_ERRORS, run_check  # noqa: PLC0415  # heavy, see above

    with errors_for_people(*CHECK_ERRORS):
        run_check(rules, data, settings)
