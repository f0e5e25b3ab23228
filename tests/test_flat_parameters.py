"""A function that takes dataclasses of options: what it accepts, what its signature and help say."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from comodal.cli import signatures
from comodal.cli.signatures import read_function
from comodal.flat_parameters import flatten_parameters

MODULE = '''
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comodal.flat_parameters import flatten_parameters


@dataclass(frozen=True)
class Where:
    """Where to compute.

    Args:
        device: The device.
        threads: Number of threads.
    """

    device: Literal["auto", "cpu"] = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Schedule(Where):
    """Where and how long.

    Attributes:
        steps: Number of optimizer steps, and a text that is long enough to be wrapped to a second line of the
            docstring of a function.
        threads: Number of threads of the schedule.
    """

    steps: int = 10
    rate: float = 1e-3


SHORT = Schedule("cpu", steps=3)


@flatten_parameters
def command(data: Path, schedule: Schedule = SHORT, seed: int = 0) -> dict[str, object]:
    """Runs.

    Args:
        data: A folder.
        schedule: How long,
            and where.
        rate: Learning rate of this command.
        seed: The seed.

    Examples:
        comodal command data/
    """
    return vars(schedule) | {"data": data, "seed": seed}
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    name = f"flat_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name)


def test_fields_are_keywords_and_the_dataclass_is_accepted_too(module: ModuleType):
    usual = {"device": "cpu", "threads": None, "steps": 3, "rate": 1e-3, "data": Path("d"), "seed": 0}
    assert module.command(Path("d")) == usual
    assert module.command(Path("d"), steps=5, seed=1) == usual | {"steps": 5, "seed": 1}
    other = module.Schedule(rate=0.5)
    assert module.command(Path("d"), schedule=other, steps=5) == usual | {"device": "auto", "rate": 0.5, "steps": 5}
    assert module.command(Path("d"), 7)["seed"] == 7  # the dataclass before it is no position
    with pytest.raises(TypeError, match="stepz"):
        module.command(Path("d"), stepz=5)
    with pytest.raises(TypeError, match="too many positional arguments"):
        module.command(Path("d"), 7, other)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'data'"):
        module.command(steps=5)


def test_the_signature_read_from_the_source_is_that_of_the_function(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(signatures, "PACKAGE_NAME", module.__name__)  # whose modules are read and not imported
    found = read_function(f"{module.__name__}:command")
    assert list(found.parameters) == list(inspect.signature(module.command).parameters.values())
    assert [(one.name, one.default) for one in found.parameters] == [
        ("data", inspect.Parameter.empty),
        ("seed", 0),
        ("device", "cpu"),
        ("threads", None),
        ("steps", 3),
        ("rate", 1e-3),
    ]
    assert found.helps["threads"] == "Number of threads of the schedule." and found.helps["device"] == "The device."


def test_help_describes_the_fields_in_place_of_the_dataclass(module: ModuleType):
    lines = inspect.getdoc(module.command).splitlines()
    start = lines.index("    data: A folder.")
    assert lines[start + 1 :] == [
        "    device: The device.",
        "    threads: Number of threads of the schedule.",
        "    steps: Number of optimizer steps, and a text that is long enough to be wrapped to a second line of the"
        " docstring",
        "        of a function.",
        "    rate: Learning rate of this command.",
        "    seed: The seed.",
        "",
        "Examples:",
        "    comodal command data/",
    ]


def test_a_field_without_default_is_required():
    @dataclass(frozen=True)
    class Size:
        width: int
        height: int = 2

    @flatten_parameters
    def area(size: Size) -> int:
        return size.width * size.height

    assert area(width=3) == 6 and area(size=Size(4, 4)) == 16
    assert inspect.signature(area).parameters["width"].default is inspect.Parameter.empty
    with pytest.raises(TypeError, match="width"):
        area(height=1)


def test_a_name_cannot_stand_for_two_things():
    @dataclass(frozen=True)
    class Size:
        width: int = 1

    def both(width: int, size: Size) -> None: ...

    make: Callable = flatten_parameters
    with pytest.raises(ValueError, match="width"):
        make(both)
