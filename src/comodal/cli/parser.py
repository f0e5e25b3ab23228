"""Builds command-line options from the parameters of a function: argparse for the flags, and settings from a YAML file.

A flag is a parameter's name with dashes; the name with underscores is accepted as well. `--flag` and `--no-flag` set a
boolean, and a list takes one or more values.
"""

import argparse
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from comodal.cli.types import ParameterType, resolve_parameter_type, suggest_closest
from comodal.errors import DataError
from comodal.recipes.recipe_configs import CONFIG_KEYS, find_recipe_config
from comodal.text_files import read_yaml

POSITIONAL_NAMES = {
    *("source", "store", "out", "images", "audio", "folder", "path", "files", "run"),
    *("image", "question", "text", "texts", "phrase", "query", "repository"),
}


class UsageError(Exception):
    """Incorrect usage of a command.

    Args:
        sentence: What is wrong.
        is_incomplete: Whether required arguments are missing.
    """

    def __init__(self, sentence: str, is_incomplete: bool = False) -> None:
        super().__init__(sentence)
        self.is_incomplete = is_incomplete


@dataclass(frozen=True)
class Option:
    """A parameter as an option of the command line."""

    name: str
    kind: ParameterType
    default: Any
    help: str
    is_positional: bool

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @cached_property
    def flags(self) -> list[str]:
        """The flags with dashes, as help and messages show it, then with underscores. `from_` is the flag --from."""
        name = self.name.rstrip("_")
        return list(dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"]))

    @property
    def display_name(self) -> str:
        return self.name.upper() if self.is_positional else self.flags[0]


def build_options(
    parameters: Iterable[inspect.Parameter], helps: Mapping[str, str], flags_only: bool = False
) -> tuple[Option, ...]:
    """The options of a function's parameters: required inputs are positional, all others are flags."""
    return tuple(
        Option(
            parameter.name,
            resolve_parameter_type(parameter.annotation),
            parameter.default,
            helps.get(parameter.name, ""),
            parameter.default is parameter.empty and parameter.name in POSITIONAL_NAMES and not flags_only,
        )
        for parameter in parameters
    )


class ParsedArguments(NamedTuple):
    """The given values, and whether to print them instead of running the command."""

    values: dict[str, Any]
    is_print: bool


class Switch(argparse.Action):
    """Sets a boolean: `--flag` is true, `--no-flag` is false."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        del parser, values
        setattr(namespace, self.dest, not (flag or "").startswith("--no-") and not (flag or "").startswith("--no_"))


class ConvertedValue(argparse.Action):
    """Stores a value, or a list of values, of an option's kind."""

    def __init__(self, *, option: Option, **settings: Any) -> None:
        super().__init__(**settings)
        self.option = option

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        del flag
        kind = self.option.kind
        try:
            value = [kind.convert(text) for text in values] if kind.is_list else kind.convert(values)
        except ValueError as error:
            parser.error(f"{self.option.display_name}: {error}")
        setattr(namespace, self.dest, value)


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError instead of exiting.

    Args:
        format_help: Writes the help page.
        run: Runs a subcommand with its arguments.
        settings: Those of argparse.
    """

    def __init__(
        self,
        format_help: Callable[[], str] = str,
        run: Callable[[list[str]], int] | None = None,
        **settings: Any,
    ) -> None:
        self.run = run
        super().__init__(
            usage="", allow_abbrev=False, argument_default=argparse.SUPPRESS, exit_on_error=False, **settings
        )
        self.format_page = format_help

    def format_help(self) -> str:
        return self.format_page()

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; a subcommand with a `run` keeps its arguments for it, so that only its own options are built."""
        if self.run is None:
            return super().parse_known_args(args, namespace)
        return argparse.Namespace(run=partial(self.run, list(args))), []

    def parse_recognized(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The values of the options of this parser, and the remaining arguments."""
        try:
            namespace, rest = self.parse_known_args(argv)
        except argparse.ArgumentError as error:
            raise UsageError(f"{(error.argument_name or '').split('/')[0]}: {error.message}") from None
        return vars(namespace), rest


class CommandParser:
    """Parses the arguments of one command: its flags, at any position, then the others as positional arguments.

    Args:
        options: The options of the command.
        format_help: Writes the help page.
    """

    def __init__(self, options: Sequence[Option], format_help: Callable[[], str]) -> None:
        self.options = options
        self.flags = ArgumentParser(format_help)
        self.arguments = ArgumentParser(add_help=False)
        self.flags.add_argument("--config", type=Path)
        self.flags.add_argument("--print-config", "--print_config", action="store_true")
        for option in options:
            self.add_option(option)

    def add_option(self, option: Option) -> None:
        """Add a flag or a positional argument. Missing arguments are checked later, since a YAML file may set some."""
        settings: dict[str, Any] = {"action": ConvertedValue, "option": option}
        if option.is_positional:
            self.arguments.add_argument(option.name, nargs="*" if option.kind.is_list else "?", **settings)
        elif option.kind.is_switch:
            off = [f"--no-{option.flags[0][2:]}", f"--no-{option.name}", f"--no_{option.name}"]
            self.flags.add_argument(*option.flags, *dict.fromkeys(off), dest=option.name, action=Switch, nargs=0)
        else:
            nargs = "+" if option.kind.is_list else None
            self.flags.add_argument(*option.flags, dest=option.name, nargs=nargs, **settings)

    def parse(self, argv: Sequence[str]) -> ParsedArguments:
        """The values of the command line and of the file of `--config`; the command line takes precedence. Defaults are
        omitted.

        Raises:
            UsageError: An option is unknown, or a value is of another type.
        """
        end = argv.index("--") if "--" in argv else len(argv)  # the arguments after it are not flags
        flag_values, rest = self.flags.parse_recognized(argv[:end])
        unknown = next((argument.partition("=")[0] for argument in rest if argument.startswith("--")), "")
        if unknown:
            valid_flags = [option_.flags[0] for option_ in self.options if not option_.is_positional]
            hint = suggest_closest(unknown.replace("_", "-"), [*valid_flags, "--help", "--config", "--print-config"])
            raise UsageError(f"unknown option {unknown}{hint}")
        rest += argv[end + 1 :]
        arguments, extra = self.arguments.parse_recognized(["--", *rest] if rest else [])
        if extra:
            raise UsageError(f"{extra[-1]!r} is an unexpected argument")
        is_print = flag_values.pop("print_config", False)
        settings = read_settings(flag_values.pop("config", None), self.options)
        return ParsedArguments(settings | flag_values | arguments, is_print)

    def list_missing(self, values: Mapping[str, Any]) -> list[str]:
        """The required arguments without a value."""
        return [option.display_name for option in self.options if option.is_required and option.name not in values]


class Subcommand(NamedTuple):
    """What the command line asks for: to run a subcommand, or to show help or the version."""

    run: Callable[[], int] | None
    is_help: bool
    is_version: bool


def parse_subcommand(
    commands: Mapping[str, Callable[[list[str]], int]], argv: Sequence[str], has_version: bool = False
) -> Subcommand:
    """The subcommand that the first argument names, as argparse's subparsers find it.

    Args:
        commands: The function of each subcommand, which gets the arguments after its name.
        argv: The arguments.
        has_version: Whether there is a flag --version.

    Raises:
        UsageError: There is no such subcommand, or an unknown option in front of it.
    """
    parser = ArgumentParser(add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    if has_version:
        parser.add_argument("-V", "--version", action="store_true")
    subparsers = parser.add_subparsers(dest="command")
    for name, run in commands.items():
        subparsers.add_parser(name, run=run, add_help=False)
    values, rest = parser.parse_recognized(argv)
    if rest:
        raise UsageError(f"unknown option {rest[0]}{suggest_closest(rest[0], ['--help', '--version'])}")
    return Subcommand(values.get("run"), "help" in values, "version" in values)


def find_config_argument(argv: Sequence[str]) -> Path | None:
    """The value of --config among the arguments of a command, before its options are known."""
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--config", type=Path)
    return parser.parse_recognized(argv)[0].get("config")


def read_settings(path: Path | None, options: Sequence[Option]) -> dict[str, Any]:
    """The values of a YAML file, such as a run's config.yaml, or of a shipped config.

    Raises:
        UsageError: It cannot be read, names an unknown option, or has a value of another type.
    """
    if path is None:
        return {}
    try:
        settings = read_yaml(find_recipe_config(path))
    except DataError as error:
        raise UsageError(f"--config: {error}") from None
    options_by_name, values = {option.name.rstrip("_"): option for option in options}, {}
    for name, value in settings.items():
        option = options_by_name.get(str(name).replace("-", "_"))
        if option is None and name in CONFIG_KEYS:
            continue
        if option is None:
            raise UsageError(f"--config: {path}: unknown option {name}{suggest_closest(str(name), options_by_name)}")
        try:
            values[option.name] = option.kind.read_yaml_value(value)
        except ValueError as error:
            raise UsageError(f"--config: {path}: {name}: {error}") from None
    return values
