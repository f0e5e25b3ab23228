"""The resolved settings of a run, as `config.yaml` in its folder, which `comodal train --config` reads."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin

import yaml

from comodal.errors import RecipeError
from comodal.files import write_bytes_atomically
from comodal.registry import RECIPES, import_object
from comodal.text_files import read_yaml

CHANGEABLE_PARAMETERS = {
    "data",
    "workers",
    "steps",
}  # parameters that change neither the order of the data nor a step


def resolve_parameters(recipe: Callable, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a recipe: the passed values, and the defaults of the rest.

    Raises:
        RecipeError: A parameter is unknown or missing, or not a number as it should be.
    """
    signature, name = inspect.signature(recipe), get_recipe_name(recipe)
    annotations = {one.name: one.annotation for one in signature.parameters.values()}
    takes_any = any(one.kind == one.VAR_KEYWORD for one in signature.parameters.values())
    for parameter, value in parameters.items():
        if parameter not in signature.parameters and not takes_any:
            closest = get_close_matches(parameter, list(signature.parameters), 1)
            suggestion = f"; did you mean {closest[0]!r}?" if closest else ""
            raise RecipeError(f"{name}: there is no parameter {parameter!r}{suggestion}")
        if isinstance(value, str) and takes_numbers_only(annotations.get(parameter)):
            raise RecipeError(f"{name}: {parameter} is a number, got {value!r}")
    try:
        bound = signature.bind(**parameters)
    except TypeError as error:
        raise RecipeError(f"{name}: {error}") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def takes_numbers_only(annotation: Any) -> bool:
    """Whether a type is int, float, or one of them or None."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return all(kind in (int, float, NoneType) for kind in kinds)


def to_yaml_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts values to types that YAML and JSON support."""

    def convert_value(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [convert_value(one) for one in value]
        return str(value) if isinstance(value, Path) else value

    return {name: convert_value(value) for name, value in values.items()}


def get_recipe_name(recipe: Callable) -> str:
    """The recipe's name on the command line; a function that is not registered has its module and its name."""
    target = f"{recipe.__module__}:{getattr(recipe, '__qualname__', '')}"
    return next((name for name, entry in RECIPES.items() if entry.target == target), target)


def find_recipe(recipe: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function of a recipe.

    Raises:
        RecipeError: There is no recipe of this name.
    """
    if not isinstance(recipe, str):
        return recipe
    if recipe not in RECIPES:
        raise RecipeError(f"there is no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    return cast(Callable[..., Any], import_object(RECIPES[recipe].target))


def write_run_config(path: Path, recipe: Callable, values: Mapping[str, Any]) -> None:
    """Writes the settings atomically."""
    command = f"# comodal train {get_recipe_name(recipe)} --config {path.name} --out ANOTHER_RUN\n"
    write_bytes_atomically(path, (command + yaml.safe_dump(to_yaml_values(values), sort_keys=False)).encode())


def read_run_config(path: Path) -> dict[str, Any]:
    """Reads the settings that a run was started with; empty if there are none yet.

    Raises:
        RecipeError: The file is damaged.
    """
    return read_yaml(path, RecipeError) if path.exists() else {}


def check_run_folder(out: Path, resume: bool) -> None:
    """Checks whether a run can be started or resumed in the folder."""
    if out.exists() and not out.is_dir():
        raise RecipeError(f"{out} is a file, not a folder")
    is_begun = out.exists() and any(not path.name.startswith(".") for path in out.iterdir())  # else killed before
    if is_begun and not resume:
        raise RecipeError(f"{out} already exists: continue with --resume, or choose another --out")
    if is_begun and resume and not (out / "config.yaml").exists():
        raise RecipeError(f"{out} is not the folder of a run: it has no config.yaml")


def describe_changes(path: Path, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Lists the differences from the settings that a run was started with, as sentences.

    Args:
        path: The run's config.yaml.
        parameters: Parameters of the recipe; most of them must not change.
        options: Options of the trainer, which may change.

    Raises:
        RecipeError: A parameter that affects the data or the steps has changed.
    """
    previous = read_run_config(path)
    if not previous:
        return []
    current = to_yaml_values(parameters) | to_yaml_values(options)
    changed = [name for name, value in current.items() if previous.get(name) != value]
    descriptions = {name: f"{name} {current[name]} instead of {previous.get(name)}" for name in changed}
    refused = [descriptions[name] for name in changed if name in parameters and name not in CHANGEABLE_PARAMETERS]
    if refused:
        raise RecipeError(f"{path.parent} was started with other settings and cannot resume with {', '.join(refused)}")
    return list(descriptions.values())
