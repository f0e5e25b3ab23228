"""Runs a command: help and usage errors without importing the command's module, then its Python function.

A command calls a function with the same parameters. Exit status: 0 success, 1 failure with a one-line message, 2 usage
error, 130 interrupted.
"""

import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from comodal.cli.check_arguments import check_arguments
from comodal.cli.help import HelpPage, format_overview, list_commands, list_entries
from comodal.cli.parser import CommandParser, Option, UsageError, build_options, find_config_argument, parse_subcommand
from comodal.cli.signatures import read_function
from comodal.cli.tables import COMMAND_GROUPS, COMMANDS, TRAIN_FUNCTION, get_command_target, list_all_commands
from comodal.cli.types import suggest_closest
from comodal.errors import ComodalError, is_out_of_memory
from comodal.files import describe_os_error
from comodal.flat_parameters import split_docstring
from comodal.recipes.recipe_configs import (
    check_config_recipe,
    find_recipe_config,
    list_recipe_configs,
    read_recipe_config,
)
from comodal.registry import RECIPES, REGION_EXTRACTORS, TASKS, import_object
from comodal.training.run_config import to_yaml_values

MAX_SENTENCE_CHARACTERS = 4000  # of an error message
EXIT_FAILURE, EXIT_USAGE_ERROR, EXIT_INTERRUPTED = 1, 2, 130
RECIPE_ARGUMENTS = frozenset({"recipe", "parameters"})
OUTPUT_OPTIONS = ("out", "contact_sheet", "explain", "index", "cache")  # printed at the end, if they exist
EMBED_COMMANDS = ("embed audio", "embed image", "embed video")  # they write next to their inputs by default


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    warnings.formatwarning = lambda message, *_: format_warning(message)
    for stream in (sys.stdout, sys.stderr):  # file names may have characters that the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return dispatch_command(list(sys.argv[1:] if arguments is None else arguments))
    except UsageError as error:  # of an argument that is read before the command is known
        return report_usage("train", str(error))
    except (ComodalError, ValueError, FloatingPointError) as error:
        return report_failure(error, str(error))
    except OSError as error:
        return report_failure(error, describe_os_error(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        detail = str(error).partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2]
        return report_failure(error, f"not enough memory{f' ({detail})' if detail else ''}")
    except KeyboardInterrupt:
        print("comodal: interrupted; the same command continues where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def format_warning(message: Warning | str) -> str:
    """One line for a warning, which may contain names of files."""
    escape = importlib.import_module("comodal.console").escape_control_characters
    return f"comodal: warning: {escape(' '.join(str(message).split()))}\n"


def report_failure(error: BaseException, sentence: str) -> int:
    """Print a one-line error message; COMODAL_DEBUG=1 shows the stack trace instead."""
    if os.environ.get("COMODAL_DEBUG"):
        raise error
    print_error(f"comodal: error: {shorten_sentence(sentence)}")
    return EXIT_FAILURE


def shorten_sentence(sentence: str) -> str:
    """A message without its middle, if it quotes so much of a file that nobody could read it."""
    half = MAX_SENTENCE_CHARACTERS // 2
    is_long = len(sentence) > MAX_SENTENCE_CHARACTERS
    return f"{sentence[:half]} [...] {sentence[-half:]}" if is_long else sentence


def print_error(sentence: str) -> None:
    """Print a message that may contain text from files. The printing library takes 0.1 s to import, so it is imported
    here.
    """
    importlib.import_module("comodal.console").print_line(sentence, stderr=True)


def report_usage(name: str, sentence: str, more: str = "") -> int:
    """Print a usage error, in one line."""
    print_error(f"comodal{' ' * bool(name)}{name}: error: {sentence}")
    print(more, file=sys.stderr, end="")
    return EXIT_USAGE_ERROR


def dispatch_command(argv: list[str]) -> int:
    """Run the command that the first arguments name."""
    first_words = dict.fromkeys(name.split()[0] for name in COMMANDS)
    commands: dict[str, Callable[[list[str]], int]] = {
        name: partial(run_group, name) if name in COMMAND_GROUPS else partial(run_command, name)
        for name in (*first_words, *COMMAND_GROUPS)
    }
    commands |= {"train": run_train, "list": run_list, "help": run_help}
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        return report_unknown_command(argv)
    try:
        subcommand = parse_subcommand(commands, argv, has_version=True)
    except UsageError as error:
        return report_usage("", str(error))
    if subcommand.run is not None:
        return subcommand.run()
    if subcommand.is_version:
        print(f"comodal {importlib.import_module('comodal').__version__}")
    else:
        print(format_overview(), end="")
    return 0


def run_group(group: str, argv: list[str]) -> int:
    """Run a command of a group, such as `embed audio`; without one, list them."""
    names = [name.partition(" ")[2] for name in list_all_commands() if name.split()[0] == group]
    if argv and not argv[0].startswith("-") and argv[0] not in names:
        return report_unknown_command([group, *argv])
    try:
        subcommand = parse_subcommand({name: partial(run_command, f"{group} {name}") for name in names}, argv)
    except UsageError as error:
        return report_usage(group, str(error))
    if subcommand.run is not None:
        return subcommand.run()
    return show_group(group, subcommand.is_help)


def show_group(group: str, is_help: bool) -> int:
    """Print the commands of a group: as its help, or because one is missing."""
    print(format_overview(group), end="", file=sys.stdout if is_help else sys.stderr)
    return 0 if is_help else EXIT_USAGE_ERROR


def report_unknown_command(argv: list[str]) -> int:
    """Print that there is no such command, and the closest one."""
    name = " ".join(argv[: 1 + (argv[0] in COMMAND_GROUPS)])
    names = [*list_all_commands(), *COMMAND_GROUPS, "list", "help"]
    hint = suggest_closest(" ".join(argv[:2]), names) or suggest_closest(name, names)
    return report_usage("", f"unknown command {name!r}{hint}")


def run_help(argv: list[str]) -> int:
    """`comodal help COMMAND`."""
    words = [word for word in argv if word not in ("-h", "--help")]
    for word in words:
        if word.startswith("-"):
            return report_usage("help", f"unknown option {word}; name a command, such as `comodal help ask`")
    if extra := words[2 if words and words[0] in COMMAND_GROUPS else 1 :]:
        return report_usage("help", f"{extra[0]!r} is an unexpected argument")
    return dispatch_command([*words, "--help"])


def run_list(argv: list[str]) -> int:
    """`comodal list`: commands, recipes, configs, tasks, region extractors, or the commands of a group."""
    sections = {
        "commands": ("", list_commands),
        "recipes": ("recipes, for `comodal train`", lambda: list_entries(RECIPES)),
        "configs": ("configs, for `comodal train --config`", lambda: list_entries(list_recipe_configs())),
        "tasks": ("tasks, for `comodal evaluate`", lambda: list_entries(TASKS)),
        "extractors": (
            "region extractors, which `--detector` recognizes by a file or folder; some have a name",
            lambda: list_entries(REGION_EXTRACTORS),
        ),
    }
    if argv in ([], ["-h"], ["--help"]):
        chosen = ["commands", "recipes", "extractors"]
    elif argv == ["recipes"]:
        chosen = ["recipes", "configs"]
    elif argv[0] in sections and len(argv) == 1:
        chosen = argv
    elif argv[0] in COMMAND_GROUPS and len(argv) == 1:
        print(list_commands(argv[0]))
        return 0
    else:
        kinds = [*sections, *COMMAND_GROUPS]
        return report_usage("list", f"{argv[-1]!r} is not one of {', '.join(kinds)}{suggest_closest(argv[-1], kinds)}")
    shown = [(f"{title}:\n" if title else "") + show() for title, show in (sections[name] for name in chosen)]
    print("\n\n".join(shown))
    return 0


def build_command_page(name: str) -> HelpPage:
    """The help page of a command."""
    function = read_function(get_command_target(name))
    docstring = split_docstring(function.doc)
    options = build_options(
        function.parameters, {**function.helps, **docstring.arguments}, flags_only=name.startswith("evaluate ")
    )
    return HelpPage(name, options, docstring)


def build_recipe_page(name: str) -> HelpPage:
    """The help page of `comodal train NAME`: the recipe's parameters and the trainer's."""
    recipe, trainer = read_function(RECIPES[name].target), read_function(TRAIN_FUNCTION, RECIPE_ARGUMENTS)
    docstring = split_docstring(recipe.doc)
    helps = {**trainer.helps, **split_docstring(trainer.doc).arguments, **recipe.helps, **docstring.arguments}
    parameters = (*recipe.parameters, *trainer.parameters)
    return HelpPage(f"train {name}", build_options(parameters, helps, flags_only=True), docstring)


def run_command(name: str, argv: list[str]) -> int:
    """Parse a command's arguments and call its function."""

    def call(values: dict[str, Any]) -> int:
        result = import_object(get_command_target(name))(**values)
        if not get_command_target(name).startswith("comodal.") and isinstance(result, dict):
            for metric, value in result.items():  # comodal's own evaluations print a table
                importlib.import_module("comodal.console").print_line(f"{metric:<36} {value:.4f}")
        return 0

    return call_with_options(build_command_page(name), argv, call)


def run_train(argv: list[str]) -> int:
    """`comodal train RECIPE`, or `comodal train --config CONFIG`, whose file names the recipe."""
    if not argv or argv[0] in ("-h", "--help"):
        return show_group("train", bool(argv))
    if not argv[0].startswith("-"):
        return run_recipe(argv[0], argv[1:])
    path = find_config_argument(argv)
    if path is None:
        return report_usage("train", "name a recipe, or a config by --config; `comodal list recipes` lists both")
    return run_recipe(read_recipe_config(path).recipe, argv)


def run_recipe(name: str, argv: list[str]) -> int:
    """Parse the arguments of `comodal train RECIPE` and train."""
    if name not in RECIPES:
        hint = suggest_closest(name, RECIPES) or "; `comodal list recipes` lists them"
        return report_usage("train", f"unknown recipe {name!r}{hint}")
    if (path := find_config_argument(argv)) is not None and find_recipe_config(path).is_file():
        check_config_recipe(path, name)
    recipe_parameters = {parameter.name for parameter in read_function(RECIPES[name].target).parameters}

    def start(values: dict[str, Any]) -> int:
        parameters = {key: values.pop(key) for key in recipe_parameters & set(values)}
        return int(import_object(TRAIN_FUNCTION)(import_object(RECIPES[name].target), parameters, **values))

    return call_with_options(build_recipe_page(name), argv, start)


def call_with_options(page: HelpPage, argv: list[str], call: Callable[[dict[str, Any]], int]) -> int:
    """Parse arguments by a command's options; call its function if they are complete and correct."""
    parser = CommandParser(page.options, page.format_full)
    try:
        values, is_print = parser.parse(argv)
    except UsageError as error:
        return report_usage(page.name, str(error))
    if is_print:
        print(yaml.safe_dump(to_yaml_values(fill_defaults(page.options, values)), sort_keys=False), end="")
        return 0
    missing = parser.list_missing(values)
    if missing:
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        return report_usage(page.name, f"{names} {'is' if len(missing) == 1 else 'are'} required", page.format_short())
    check_arguments(page.options, values)
    status = call(values)
    if status == 0:
        for path in list_written_paths(page.name, values):
            print_error(f"wrote {path}")
    return status


def list_written_paths(name: str, values: dict[str, Any]) -> list[Path]:
    """What a command has written: its outputs, and for the commands that write next to their inputs, these."""
    outputs = [values[option] for option in OUTPUT_OPTIONS if option in values]
    if name == "prepare tokens":
        outputs.append(values["store"])
    if name in EMBED_COMMANDS and values.get("out") is None:
        outputs += dict.fromkeys(path if path.is_dir() else path.parent for path in values["files"])
    return [path for path in outputs if isinstance(path, Path) and path.exists()]


def fill_defaults(options: Sequence[Option], values: dict[str, Any]) -> dict[str, Any]:
    """Every option's value, except for required ones that were not given."""
    return {
        option.name: values.get(option.name, option.default)
        for option in options
        if option.name in values or not option.is_required
    }
