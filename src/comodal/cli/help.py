"""The help page of a command, its short usage, and the list of commands."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comodal.cli.parser import Option
from comodal.cli.tables import COMMAND_GROUPS, COMMAND_TOPICS, list_all_commands
from comodal.flat_parameters import Docstring
from comodal.registry import RECIPES, RegistryEntry

COMMON_OPTIONS = (
    *("data", "model", "out", "variant", "steps", "epochs", "batch_size", "learning_rate", "resume"),
    *("device", "precision", "engine", "workers", "seed", "json", "overwrite"),
)
NAME_WIDTH, MAX_LINE_WIDTH = 28, 120
GENERAL_OPTIONS = (
    (
        "--config FILE",
        "Take options from a YAML file, such as the config.yaml of a run, or for `train` from a shipped config by its "
        "name (`comodal list recipes`). Flags override the file.",
    ),
    ("--print-config", "Print all options as YAML and exit."),
    ("-h, --help", "Print this page."),
)


class HelpPage:
    """The content of a command's help.

    Args:
        name: The command's name, such as "embed audio".
        options: The command's options.
        docstring: The docstring of its function.
    """

    def __init__(self, name: str, options: Sequence[Option], docstring: Docstring) -> None:
        self.name = name
        self.options = options
        self.docstring = docstring

    def format_usage(self) -> str:
        """One line with the required arguments."""
        parts = [option.display_name + "..." * option.kind.is_list for option in self.options if option.is_positional]
        parts += [
            f"{option.flags[0]} {option.kind.placeholder}"
            for option in self.options
            if option.is_required and not option.is_positional
        ]
        return " ".join(["usage: comodal", self.name, *parts, "[options]"])

    def format_short(self) -> str:
        """The usage and one example."""
        example = [line for line in self.docstring.examples if f"comodal {self.name} " in line][:1]
        lines = [
            self.format_usage(),
            *(f"example: {line}" for line in example),
            f"`comodal {self.name} --help` lists all options.",
        ]
        return "\n".join(lines) + "\n"

    def format_full(self) -> str:
        """The whole page: required arguments first, then common options, then the others, then examples."""
        required = [option for option in self.options if option.is_required]
        rest = [option for option in self.options if not option.is_required]
        common = sorted(
            (option for option in rest if option.name in COMMON_OPTIONS),
            key=lambda option: COMMON_OPTIONS.index(option.name),
        )
        remaining = [option for option in rest if option.name not in COMMON_OPTIONS]
        parts = [self.format_usage(), self.docstring.about]
        for title, options in (("required", required), ("common options", common), ("more options", remaining)):
            rows = [(format_invocation(option), format_explanation(option)) for option in options]
            rows += GENERAL_OPTIONS if title == "more options" else ()
            if rows:
                parts.append(f"{title}:\n" + format_columns(rows, NAME_WIDTH))
        if self.docstring.examples:
            parts.append("\n".join(["examples:", *(f"  {line}" for line in self.docstring.examples)]))
        return "\n\n".join(parts) + "\n"


def format_invocation(option: Option) -> str:
    """The written form of an option."""
    if option.is_positional:
        return option.display_name + "..." * option.kind.is_list
    if option.kind.is_switch:
        return (
            option.display_name if option.default is False else f"{option.display_name}, --no-{option.display_name[2:]}"
        )
    return f"{option.display_name} {option.kind.placeholder}" + " ..." * option.kind.is_list


def format_explanation(option: Option) -> str:
    """The description of an option, its choices if there are many, and its default."""
    text = option.help
    if option.kind.choices and option.kind.placeholder == "NAME":
        text += f" One of {', '.join(option.kind.choices)}."
    default = format_default(option.default)
    return text if option.is_required or not default else f"{text} (default: {default})"


def format_default(value: Any) -> str:
    """A default as it would be written; empty if there is none to show."""
    if value is None or value is False:
        return ""
    if value is True:
        return "on"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def format_columns(rows: Iterable[tuple[str, str]], width: int) -> str:
    """Two columns: names, and their wrapped descriptions."""
    line = min(shutil.get_terminal_size((100, 24)).columns, MAX_LINE_WIDTH)
    texts = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, max(line - width - 2, 20)) or [""]
        if len(name) > width - 4:
            texts.append(f"  {name}")
        else:
            texts.append(f"  {name:<{width - 2}}{wrapped.pop(0)}".rstrip())
        texts += [" " * width + part for part in wrapped]
    return "\n".join(texts)


def list_entries(entries: Mapping[str, RegistryEntry], prefix: str = "") -> str:
    """Names with their descriptions."""
    rows = [(f"{prefix}{name}", entry.about) for name, entry in entries.items()]
    return format_columns(rows, max(len(name) for name, _ in rows) + 6)


def list_commands(group: str = "") -> str:
    """The commands by topic, or those of a group."""
    if group == "train":
        return list_entries(RECIPES)
    entries = list_all_commands()
    if group:
        return list_entries({name: one for name, one in entries.items() if name.split()[0] == group}, "comodal ")
    entries["train"] = RegistryEntry("", COMMAND_GROUPS["train"])
    entries["list"] = RegistryEntry("", "list recipes, configs, tasks, extractors: comodal list tasks")
    entries["help"] = RegistryEntry("", "show the help page of a command: comodal help COMMAND")
    width = max(map(len, entries)) + len("comodal ") + 6
    sections = []
    for topic, words in COMMAND_TOPICS.items():
        names = [name for word in words for name in entries if name.split()[0] == word]
        rows = [(f"comodal {name}", entries[name].about) for name in names]
        sections.append(f"{topic}:\n{format_columns(rows, width)}")
    return "\n\n".join(sections)


def format_overview(group: str = "") -> str:
    """The help of the whole command line, or of one group of commands."""
    placeholder = "RECIPE" if group == "train" else "COMMAND"
    usage = " ".join(filter(None, ["usage: comodal", group, placeholder, "..."]))
    about = COMMAND_GROUPS.get(group, "self-supervised learning from video with audio, and from images with text")
    end = f"`{' '.join(filter(None, ['comodal', group, placeholder, '--help']))}` lists options and examples."
    return "\n\n".join([usage, about, list_commands(group), end]) + "\n"
