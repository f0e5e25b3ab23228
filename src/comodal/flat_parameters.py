"""Lets a function that takes dataclasses of options also be called with their fields as keywords.

A recipe or a command groups related options in frozen dataclasses. Python users, run configs and the
command line set each field by its own name:

    @flatten_parameters
    def evaluate(model: Path, compute: ComputeOptions = AUTOMATIC_COMPUTE) -> dict[str, float]: ...

    evaluate(model, device="cpu")
    evaluate(model, compute=ComputeOptions("cpu"))
"""

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

Result = TypeVar("Result")
DOC_WRAPPER = textwrap.TextWrapper(  # of the entry of an argument in a function's docstring
    120, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False, break_long_words=False
)


SECTION_HEADING = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Examples?):$", re.MULTILINE)


@dataclass(frozen=True)
class Docstring:
    """A docstring in parts.

    Attributes:
        about: The text before the first section.
        arguments: One text for each argument, or for each attribute of a class, on one line.
        examples: The lines of the examples, without indentation.
    """

    about: str
    arguments: dict[str, str]
    examples: tuple[str, ...]


def split_docstring(doc: str) -> Docstring:
    """Split a docstring whose indentation has been removed."""
    about, *parts = SECTION_HEADING.split(doc)
    sections = {title: textwrap.dedent(body).strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}
    described = sections.get("Args") or sections.get("Attributes") or ""
    entries = re.split(r"^(\w+):\s", described, flags=re.MULTILINE)[1:]
    arguments = {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}
    examples = sections.get("Examples") or sections.get("Example") or ""
    return Docstring(about.strip(), arguments, tuple(line for line in examples.splitlines() if line.strip()))


def flatten_parameters(function: Callable[..., Result]) -> Callable[..., Result]:
    """Makes the fields of a function's dataclass parameters keywords of the function.

    A keyword replaces a field of the given dataclass, or of the parameter's default. Fields and dataclasses are taken
    by name only. In the signature and the docstring of the result, the fields replace the dataclasses.

    Raises:
        ValueError: Two parameters or fields have the same name.
    """
    signature = inspect.signature(function)
    groups = {name: one for name, one in signature.parameters.items() if is_dataclass(one.annotation)}
    owners = {field.name: name for name, group in groups.items() for field in fields(group.annotation)}

    flat = sort_parameters(expand_parameters(signature.parameters.values()))
    whole = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in groups.values()]
    accepted = signature.replace(parameters=sort_parameters([*flat, *whole]))

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Result:
        given = accepted.bind_partial(*arguments, **options).arguments
        changed: dict[str, dict[str, Any]] = {}
        for field in owners.keys() & given.keys():
            value = convert_text_to_path(accepted.parameters[field].annotation, given.pop(field))
            changed.setdefault(owners[field], {})[field] = value
        given = {name: convert_text_to_path(accepted.parameters[name].annotation, one) for name, one in given.items()}
        for name, values in changed.items():
            default, kind = given.get(name, groups[name].default), groups[name].annotation
            given[name] = kind(**values) if default is inspect.Parameter.empty else replace(default, **values)
        return function(**given)

    call.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in flat} | {"return": signature.return_annotation}
    call.__doc__ = document_fields(function.__doc__ or "", {name: one.annotation for name, one in groups.items()})
    return call


def convert_text_to_path(annotation: Any, value: Any) -> Any:
    """The value of a parameter; text becomes a path where the annotation allows a path and no text."""
    kinds = get_args(annotation) or (annotation,)
    allows_text = str in kinds or any(get_origin(kind) is Literal for kind in kinds)
    return Path(value) if isinstance(value, str) and Path in kinds and not allows_text else value


def expand_parameters(parameters: Iterable[inspect.Parameter]) -> Iterator[inspect.Parameter]:
    """The parameters, where a dataclass is replaced by a keyword for each of its fields."""
    for parameter in parameters:
        if not is_dataclass(parameter.annotation):
            yield parameter
            continue
        for field in fields(parameter.annotation):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            if parameter.default is not inspect.Parameter.empty:
                default = getattr(parameter.default, field.name)
            kind = inspect.Parameter.KEYWORD_ONLY
            yield inspect.Parameter(field.name, kind, default=default, annotation=field.type)


def sort_parameters(parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    """The parameters with the keyword-only ones at the end, as Python requires."""
    return sorted(parameters, key=lambda one: one.kind)


def document_fields(doc: str, groups: dict[str, type]) -> str:
    """A docstring whose entries for dataclasses are replaced by those of their fields."""
    for name, kind in groups.items():
        described: dict[str, str] = {}
        for base in filter(is_dataclass, reversed(kind.__mro__)):
            described |= split_docstring(inspect.cleandoc(base.__doc__ or "")).arguments
        entries = [
            DOC_WRAPPER.fill(f"{field}: {text}") + "\n"
            for field, text in described.items()
            if f"\n{DOC_WRAPPER.initial_indent}{field}: " not in doc  # the function describes it itself
        ]
        entry = rf"^{DOC_WRAPPER.initial_indent}{name}: .*\n(?:{DOC_WRAPPER.subsequent_indent}.*\n)*"
        before, *after = re.split(entry, doc, maxsplit=1, flags=re.MULTILINE)
        doc = "".join([before, *entries, *after])
    return doc
