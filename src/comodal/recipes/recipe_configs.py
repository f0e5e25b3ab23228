"""The shipped configs of `comodal train --config NAME`: one YAML file for each experiment of the papers.

A config names its recipe (`recipe`), says in one line what it trains (`about`), and sets options of `comodal train
RECIPE`. The data and the run folder are flags. Flags override the config.
"""

from pathlib import Path
from typing import Any, NamedTuple

from comodal.errors import RecipeError
from comodal.registry import RECIPES, RegistryEntry
from comodal.text_files import read_yaml

CONFIGS_DIR = Path(__file__).parent / "configs"
CONFIG_KEYS = ("recipe", "about")  # of a config, besides the options


class RecipeConfig(NamedTuple):
    """A config: its recipe, what it trains, and the values of options by their names."""

    recipe: str
    about: str
    options: dict[str, Any]


def find_recipe_config(path: Path) -> Path:
    """The file of a config: an existing file, or else the shipped config of this name."""
    shipped = CONFIGS_DIR / f"{path}.yaml"
    return shipped if not path.exists() and path.name == str(path) and shipped.is_file() else path


def read_recipe_config(path: Path) -> RecipeConfig:
    """Reads a config.

    Raises:
        RecipeError: It cannot be read, or names no recipe.
    """
    file = find_recipe_config(path)
    if not file.exists():
        raise RecipeError(f"{path}: no such file, and no shipped config; `comodal list recipes` lists the shipped ones")
    values = read_yaml(file, RecipeError)
    recipe, about = values.pop("recipe", None), values.pop("about", "")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise RecipeError(
            f"{path}: recipe is {recipe!r}; name the recipe, as in `comodal train RECIPE --config {path}`"
        )
    return RecipeConfig(recipe, str(about), {str(name).replace("-", "_"): value for name, value in values.items()})


def check_config_recipe(path: Path, recipe: str) -> None:
    """Checks that a config is for a recipe; a file that names none, such as a run's config.yaml, is for any.

    Raises:
        RecipeError: It cannot be read, or is for another recipe.
    """
    other = read_yaml(find_recipe_config(path), RecipeError).get("recipe", recipe)
    if other != recipe:
        raise RecipeError(f"{path} is a config of the recipe {other}, not of {recipe}")


def list_recipe_configs() -> dict[str, RegistryEntry]:
    """All shipped configs by name: the recipe, and what each trains."""
    configs = {path.stem: read_recipe_config(path) for path in sorted(CONFIGS_DIR.glob("*.yaml"))}
    return {name: RegistryEntry(config.recipe, f"{config.about} ({config.recipe})") for name, config in configs.items()}
