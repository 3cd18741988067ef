"""Command-line options generated from the settings dataclasses of `training.config`.

A command takes a settings dataclass as one parameter. `with_options` replaces that parameter, for typer, by one option
for each field made by `training.config.option`, nested dataclasses included, and builds the dataclass from the values.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, Final, get_origin, get_type_hints

import typer

from training.commands.console import errors_for_people
from training.config import ComputeSettings, LogSettings, Option, TrainSettings


@dataclass(frozen=True, slots=True)
class _Generated:
    """One option: the dotted path of its field, the type and default for typer, and its facts."""

    path: str
    kind: Any
    default: Any
    option: Option

    @property
    def parameter(self) -> str:
        """Name of the function's parameter."""
        return self.path.replace(".", "__")

    def for_typer(self) -> inspect.Parameter:
        """Return the parameter that typer turns into this option."""
        kind, default, facts = self.kind, self.default, self.option
        if isinstance(default, tuple):
            kind, default = list[str] | None, None
        info = typer.Option(
            self._flag(),
            help=facts.help,
            min=facts.low,
            max=facts.high,
            rich_help_panel=facts.panel,
            metavar=facts.metavar,
            envvar=facts.envvar,
            show_default=facts.shown,
        )
        return inspect.Parameter(
            self.parameter, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
        )

    def _flag(self) -> str:
        if self.option.flag:
            return self.option.flag
        name = self.path.rpartition(".")[2].replace("_", "-")
        return f"--{name}/--no-{name}" if self.default is True else f"--{name}"


def _options(kind: type[Any], prefix: str = "", facts: Mapping[str, Option] | None = None) -> Iterator[_Generated]:
    """Yield the options of a settings dataclass; `facts` are for fields without metadata."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        path, hint = f"{prefix}{each.name}", hints[each.name]
        option = each.metadata.get("option") or (facts or {}).get(each.name)
        if option is not None:
            shown = option.kind or hint
            # The default None is no value of `Option.kind`; the help shows `Option.shown` instead.
            optional = each.default is None and option.kind is not None
            yield _Generated(path, shown | None if optional else shown, each.default, option)
        elif is_dataclass(hint):
            assert isinstance(hint, type)  # noqa: S101  # a dataclass in an annotation is a class
            yield from _options(hint, f"{path}.", each.metadata.get("options"))


def _built(kind: type[Any], values: Mapping[str, Any], prefix: str = "") -> Any:  # noqa: ANN401  # any settings
    """Return the settings dataclass with these values by dotted path; other fields have their defaults."""
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for each in fields(kind):
        path, hint = f"{prefix}{each.name}", hints[each.name]
        if path in values:
            value = values[path]
            given[each.name] = tuple(value or ()) if get_origin(hint) is tuple else value
        elif is_dataclass(hint) and each.default_factory is not MISSING:
            assert isinstance(hint, type)  # noqa: S101  # a dataclass in an annotation is a class
            given[each.name] = _built(hint, values, f"{path}.")
    return kind(**given)


class ConfigFlags(dict[str, Any]):
    """Values by dotted key of a run's configuration file, of those options alone that the command line names."""


_CONTEXT: Final = "context"
_CONFIG: Final = (("", TrainSettings), ("log.", LogSettings), ("compute.", ComputeSettings))


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command as typer needs it: options in place of its settings dataclasses and `ConfigFlags`."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, list[_Generated]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if kind is ConfigFlags:
            groups[name] = [each for prefix, part in _CONFIG for each in _options(part, prefix)]
        elif is_dataclass(kind):
            assert isinstance(kind, type)  # noqa: S101  # same
            groups[name] = list(_options(kind))
        else:
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
    for group in groups.values():
        parameters += [each.for_typer() for each in group]

    if ConfigFlags in hints.values():
        parameters.append(inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    @wraps(command)
    def wrapped(**values: Any) -> None:  # noqa: ANN401  # whatever typer parsed
        context: typer.Context | None = values.pop(_CONTEXT, None)
        built: dict[str, Any] = {}
        for name, group in groups.items():
            given = {each.path: values.pop(each.parameter) for each in group}
            if context is not None and hints[name] is ConfigFlags:
                sources = {each.path: context.get_parameter_source(each.parameter) for each in group}
                # An option that the command line leaves out must not override the file.
                named = [path for path, source in sources.items() if source and source.name == "COMMANDLINE"]
                built[name] = ConfigFlags({path: given[path] for path in named})
            else:
                # The dataclass checks what typer cannot, such as a bound that is excluded.
                with errors_for_people(ValueError):
                    built[name] = _built(hints[name], given)
        command(**values, **built)

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what `inspect` looks for
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped
