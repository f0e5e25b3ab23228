"""The parameter types of the command line: conversion of an argument, or of a value from a YAML file, to a value of the
type.
"""

import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

MAX_CHOICES_LENGTH = 48  # of the choices in a line of help; longer lists are in the text


@dataclass(frozen=True)
class ParameterType:
    """A type of parameter.

    Attributes:
        convert: Converts one argument; raises ValueError with a message.
        placeholder: The placeholder of the value in help.
        choices: The possible values, if there are few.
        is_list: Whether the parameter takes one or more values.
        is_switch: Whether it is a boolean flag, which takes no value.
        is_optional: Whether None is a value.
    """

    convert: Callable[[str], Any]
    placeholder: str
    choices: tuple[str, ...] = ()
    is_list: bool = False
    is_switch: bool = False
    is_optional: bool = False

    def read_yaml_value(self, value: object) -> Any:
        """Convert a value from a YAML file.

        Raises:
            ValueError: It is of another type.
        """
        if value is None and self.is_optional:
            return None
        if self.is_switch:
            if not isinstance(value, bool):
                raise ValueError(f"{value!r} is not true or false")
            return value
        if self.is_list:
            if not isinstance(value, list):
                raise ValueError(f"{value!r} is not a list")
            return [self.read_single_value(item) for item in value]
        return self.read_single_value(value)

    def read_single_value(self, value: object) -> Any:
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError(f"{value!r} is not one {self.placeholder}")
        return self.convert(str(value))


def parse_text(text: str) -> str:
    """A text argument, unchanged.

    Raises:
        ValueError: It is a file name that is not valid UTF-8, which no result could store.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!a} is not UTF-8; if it is a file, rename it") from None
    return text


def parse_path(text: str) -> Path:
    return Path(parse_text(text))


def parse_number(text: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {'an integer' if kind is int else 'a number'}") from None


BASIC_TYPES = {
    bool: ParameterType(bool, "", is_switch=True),
    int: ParameterType(lambda word: parse_number(word, int), "INT"),
    float: ParameterType(lambda word: parse_number(word, float), "FLOAT"),
    str: ParameterType(parse_text, "TEXT"),
    Path: ParameterType(parse_path, "PATH"),
}


def resolve_parameter_type(annotation: Any) -> ParameterType:
    """The parameter type of an annotation.

    Raises:
        TypeError: The command line does not support this annotation.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in BASIC_TYPES:
        return BASIC_TYPES[annotation]
    if origin is Literal:
        return make_choice_type(arguments)
    if origin in (Union, types.UnionType):
        members = [member for member in arguments if member is not types.NoneType]
        is_path = members == [Path, str]  # what the Python API accepts for a path
        kinds = [BASIC_TYPES[Path]] if is_path else [resolve_parameter_type(member) for member in members]
        parameter_type = kinds[0] if len(kinds) == 1 else make_union_type(kinds)
        return replace(parameter_type, is_optional=types.NoneType in arguments)
    if origin in (list, Sequence) or (origin is tuple and arguments[1:] == (...,)):
        member = resolve_parameter_type(arguments[0])
        if not (member.is_list or member.is_switch):
            return replace(member, is_list=True, is_optional=False)
    raise TypeError(f"a command cannot have a parameter of the type {annotation}")


def make_choice_type(values: Sequence[Any]) -> ParameterType:
    """One of several fixed values."""
    values_by_text = {str(value): value for value in values}

    def convert(text: str) -> Any:
        if text not in values_by_text:
            raise ValueError(
                f"{text!r} is not one of {', '.join(values_by_text)}{suggest_closest(text, values_by_text)}"
            )
        return values_by_text[text]

    choices_text = "{" + ",".join(values_by_text) + "}"
    return ParameterType(
        convert, choices_text if len(choices_text) <= MAX_CHOICES_LENGTH else "NAME", tuple(values_by_text)
    )


def make_union_type(kinds: Sequence[ParameterType]) -> ParameterType:
    """The first of several types that can convert the argument."""
    if any(kind.is_list or kind.is_switch for kind in kinds):
        raise TypeError("a command cannot have a parameter that is either one value or a list")

    def convert(text: str) -> Any:
        for kind in kinds[:-1]:
            try:
                return kind.convert(text)
            except ValueError:
                continue
        return kinds[-1].convert(text)

    return ParameterType(convert, "|".join(dict.fromkeys(kind.placeholder for kind in kinds)))


def suggest_closest(name: str, candidates: Iterable[str]) -> str:
    """The end of a message that suggests the closest candidate, or an empty text."""
    matches = get_close_matches(name, list(candidates), 1)
    return f". Did you mean {matches[0]}?" if matches else ""
