"""The command line from outside: what a user types, what comes back, and never a stack trace for a mistake."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from comodal.cli import signatures
from comodal.cli.check_arguments import INPUT_OPTIONS
from comodal.cli.parser import CommandParser, UsageError, build_options
from comodal.cli.program import RECIPE_ARGUMENTS, build_command_page, build_recipe_page, main
from comodal.cli.signatures import SignatureError, read_function
from comodal.cli.tables import COMMAND_GROUPS, TRAIN_FUNCTION, list_all_commands
from comodal.cli.types import resolve_parameter_type
from comodal.recipes.recipe_configs import list_recipe_configs
from comodal.registry import RECIPES

COMMANDS = list_all_commands()
PAGES = [*COMMANDS, *(f"train {name}" for name in RECIPES)]
TARGETS = [*(entry.target for entry in (*COMMANDS.values(), *RECIPES.values())), TRAIN_FUNCTION]


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "comodal", *words], capture_output=True, text=True, check=False)


def parser_of(function: Any, **settings: bool) -> CommandParser:
    return CommandParser(build_options(inspect.signature(function).parameters.values(), {}, **settings), lambda: "")


def parse(function: Any, *words: str) -> dict[str, Any]:
    return parser_of(function).parse(words).values


@pytest.mark.parametrize("name", PAGES)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: comodal {name} ")
    assert f"comodal {name} " in text.split("examples:")[1], "a command shows how it is typed"
    assert "Optional[" not in text and "<class" not in text
    with pytest.raises(SystemExit):
        main(["help", *name.split()])
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", PAGES)
def test_a_command_without_its_arguments_shows_a_usage_and_one_example(name: str, capsys: pytest.CaptureFixture):
    page = build_recipe_page(name.split()[1]) if name.startswith("train ") else build_command_page(name)
    required = [option.display_name for option in page.options if option.is_required]
    if not required:
        return  # it would run
    assert main(name.split()) == 2
    said = capsys.readouterr().err
    first, usage, example, _ = said.splitlines()
    assert first.startswith(f"comodal {name}: error: ") and all(shown in first for shown in required)
    assert usage.startswith(f"usage: comodal {name} ") and all(shown in usage for shown in required)
    assert example.startswith("example: ") and f"comodal {name} " in example


@pytest.mark.parametrize("target", TARGETS)
def test_a_signature_is_read_from_the_source_as_python_makes_it(target: str):
    module, name = target.split(":")
    skip = RECIPE_ARGUMENTS if target == TRAIN_FUNCTION else frozenset()
    real = inspect.signature(getattr(importlib.import_module(module), name))
    read = read_function(target, skip).parameters
    assert list(read) == [parameter for parameter in real.parameters.values() if parameter.name not in skip]


REFUSED = (
    *("ask", "train l3net", "train l4net", "askk", "help ask --hlep", "ask /no/such.jpg what --model /no/such"),
    "results /no/such",
    "extract . out --detector /no/such.pth",
    "extract . out --detector efficientnet_lite0 --boxes /no/such.jsonl",
    "prepare regions . out --from grid --network /no/such.pth",
    "convert vilbert . out --original-config /no/such.json",
    "train vqa --model . --questions . --annotations . --regions . --out out --validation-questions /no/such.json",
    *(f"train l3net --data . --out out {flag}" for flag in ("--batch-size 0", "--threads 0", "--workers -1")),
    *(f"{command} --workers {count}" for command in ("prepare videos . out", "extract . out") for count in (0, -2)),
    "embed audio . --model . --workers -1",
    "embed audio . --model . --batch-size 0",
    "evaluate esc50 --model . --data . --workers 0",
    "evaluate retrieval --model . --captions . --regions . --batch-size -1",
)


def test_help_and_wrong_usage_do_not_import_torch():
    code = f"""
import contextlib, io, sys
from comodal.cli.program import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    for words in {[*PAGES, *COMMAND_GROUPS, "list", "list recipes", ""]!r}:
        with contextlib.suppress(SystemExit):
            main([*words.split(), "--help"])
    for words in {[*REFUSED]!r}:
        assert main(words.split()) in (1, 2), words
loaded = [name for name in ("torch", "numpy", "av") if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_recipe_explains_its_parameters_and_the_trainers():
    text = build_recipe_page("l3net").format_full()
    assert "--learning-rate FLOAT" in text and "--resume" in text and "torchrun" in text
    assert text.index("required:") < text.index("common options:") < text.index("more options:")
    assert text.index("--variant") < text.index("more options:") < text.index("--gain-jitter")


def test_list_shows_all_commands_and_recipes(capsys: pytest.CaptureFixture):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(said.count(f"\n  comodal {name} ") == 1 for name in (*COMMANDS, "train", "list", "help"))
    assert main(["list", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert names == [*RECIPES, *list_recipe_configs()]
    assert main(["list", "recipez"]) == 2
    assert "Did you mean recipes?" in capsys.readouterr().err


def test_every_recipe_of_the_package_is_in_the_table():
    package = Path(importlib.import_module("comodal").__file__).parent
    files = [path for folder in ("recipes", "tasks") for path in (package / folder).rglob("*.py")]
    modules = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in files
        if "\ndef recipe(" in path.read_text()
    }
    assert modules == {entry.target.removesuffix(":recipe") for entry in RECIPES.values()}


def test_version(capsys: pytest.CaptureFixture):
    assert main(["-V"]) == main(["--version"]) == 0
    assert set(capsys.readouterr().out.splitlines()) == {f"comodal {importlib.import_module('comodal').__version__}"}


def sample(
    folder: Path,
    files: list[Path],
    short_side: int = 256,
    from_: Literal["auto", "grid"] = "auto",
    resume: bool = False,
    mirror_some: bool = True,
    classes: list[str] | None = None,
    boxes: str | Path | None = None,
    threads: int | Literal["auto"] = "auto",
    rate: float = 1e-4,
) -> None: ...


def test_values_of_all_types():
    words = ["a", "b", "c", "--short-side", "64", "--from", "grid", "--resume", "--no-mirror-some", "--boxes", "grid"]
    words += ["--classes", "singing", "tap dancing", "--threads", "4", "--rate", "-0.5"]
    assert parse(sample, *words) == {
        "folder": Path("a"),
        "files": [Path("b"), Path("c")],
        "short_side": 64,
        "from_": "grid",
        "resume": True,
        "mirror_some": False,
        "boxes": "grid",
        "classes": ["singing", "tap dancing"],
        "threads": 4,
        "rate": -0.5,
    }


@pytest.mark.parametrize("words", [["--short_side", "64"], ["--short-side=64"], ["--short_side=64"]])
def test_flags_are_written_with_dashes_or_underscores(words: list[str]):
    assert parse(sample, *words) == {"short_side": 64}
    assert parse(sample, "--mirror_some") == {"mirror_some": True}
    assert parse(sample, "--no_mirror_some") == parse(sample, "--no-mirror_some") == {"mirror_some": False}


def test_arguments_may_stand_before_and_behind_flags():
    assert parse(sample, "a", "--resume", "b", "--short-side", "8", "c") == {
        "folder": Path("a"),
        "files": [Path("b"), Path("c")],
        "resume": True,
        "short_side": 8,
    }
    assert parse(sample, "--", "a", "--resume")["files"] == [Path("--resume")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--short-side", "many"], "--short-side: 'many' is not an integer"),
        (["--short_side", "1.5"], "--short-side: '1.5' is not an integer"),
        (["--short-side"], "--short-side: expected one argument"),
        (["--rate", "fast"], "--rate: 'fast' is not a number"),
        (["--from", "gridd"], "--from: 'gridd' is not one of auto, grid. Did you mean grid?"),
        (["--shrot-side", "8"], "unknown option --shrot-side. Did you mean --short-side?"),
        (["--shrot_side=8"], "unknown option --shrot_side. Did you mean --short-side?"),
        (["--short", "8"], "unknown option --short. Did you mean --short-side?"),
        (["a", "latin\udcff.wav"], "FILES: 'latin\\udcff.wav' is not UTF-8; if it is a file, rename it"),
    ],
)
def test_a_wrong_word_is_told_in_one_sentence(words: list[str], sentence: str):
    with pytest.raises(UsageError) as raised:
        parse(sample, *words)
    assert str(raised.value) == sentence


def test_an_argument_too_many():
    def one(image: Path, top: int = 5) -> None: ...

    with pytest.raises(UsageError, match="'b' is an unexpected argument"):
        parse(one, "a", "b")


def test_settings_of_a_file_and_of_flags(tmp_path: Path):
    path = tmp_path / "settings.yaml"
    settings = {"folder": "a", "files": ["b"], "short-side": 8, "from": "grid", "resume": True, "rate": 1}
    path.write_text(yaml.safe_dump(settings | {"classes": None}) + "threads: auto\n")
    parser = parser_of(sample)
    values = parser.parse(["--config", str(path), "--short-side", "16", "--no-resume"]).values
    assert values == {
        "folder": Path("a"),
        "files": [Path("b")],
        "short_side": 16,
        "from_": "grid",
        "resume": False,
        "rate": 1.0,
        "classes": None,
        "threads": "auto",
    }
    assert parser.list_missing(values) == []
    assert parser.list_missing(parser.parse([]).values) == ["FOLDER", "FILES"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("short_sied: 8", "unknown option short_sied. Did you mean short_side?"),
        ("short_side: many", "short_side: 'many' is not an integer"),
        ("short_side: null", "short_side: None is not one INT"),
        ("resume: 1", "resume: 1 is not true or false"),
        ("files: b", "files: 'b' is not a list"),
        ("7", "a mapping of names to values"),
        ("{", "not YAML"),
    ],
)
def test_a_wrong_settings_file(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as raised:
        parse(sample, "--config", str(path))
    assert str(path) in str(raised.value) and sentence in str(raised.value) and "\n" not in str(raised.value)


def test_a_settings_file_that_is_not_there():
    with pytest.raises(UsageError, match=r"/no/such\.yaml: No such file"):
        parse(sample, "--config", "/no/such.yaml")


@pytest.mark.parametrize("annotation", [dict[str, int], list[list[int]], bytes, list[int] | int, inspect.Parameter])
def test_types_without_words_are_refused(annotation: Any):
    with pytest.raises(TypeError):
        resolve_parameter_type(annotation)


def test_a_default_that_is_computed_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "computed_default.py").write_text("def command(count: int = len('abc')) -> None: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(signatures, "PACKAGE_NAME", "computed_default")
    with pytest.raises(SignatureError, match="cannot be read without importing it"):
        read_function("computed_default:command")


def test_inputs_are_parameters_of_some_command():
    pages = [build_command_page(name) for name in COMMANDS] + [build_recipe_page(name) for name in RECIPES]
    options = [option for page in pages for option in page.options]
    assert {option.name for option in options} >= INPUT_OPTIONS
    of_paths = {one.name for one in options if one.kind.placeholder in ("PATH", "TEXT|PATH")}
    assert of_paths >= INPUT_OPTIONS and "out" not in INPUT_OPTIONS


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["prepare", "vidoes"], 2, "unknown command 'prepare vidoes'. Did you mean prepare videos?"),
        (["evaluat", "esc50"], 2, "Did you mean evaluate esc50?"),
        (["searchh"], 2, "unknown command 'searchh'. Did you mean search?"),
        (["help", "train", "l3net", "--badopt"], 2, "comodal help: error: unknown option --badopt"),
        (["help", "train", "l3net", "ask"], 2, "'ask' is an unexpected argument"),
        (["help", "ask", "kitchen.jpg"], 2, "'kitchen.jpg' is an unexpected argument"),
        (["--hlep"], 2, "unknown option --hlep. Did you mean --help?"),
        (["train", "l4net"], 2, "unknown recipe 'l4net'. Did you mean l3net?"),
        (["prepare", "videos", "/no/such/folder", "out"], 1, "/no/such/folder"),
        (["train", "l3net", "--data", "/no/such/shards", "--out", "{tmp}/run"], 1, "/no/such/shards"),
        (["evaluate", "esc50", "--model", "/no/such/run", "--data", "/no/such/data"], 1, "/no/such/"),
        (["inspect", "/no/such/file"], 1, "/no/such/file"),
        (["embed", "audio", "/no/such.wav", "--model", "/no/such/run"], 1, "/no/such"),
        (["train", "l3net", "--data", "x", "--out", "y", "--steps", "many"], 2, "--steps: 'many' is not an integer"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    words: list[str], status: int, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main([word.format(tmp=tmp_path) for word in words]) == status
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("group", COMMAND_GROUPS)
def test_a_group_lists_its_commands(group: str, capsys: pytest.CaptureFixture):
    assert main([group, "--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in RECIPES) if group == "train" else f"comodal {group} " in listed
    assert main([group]) == 2
    assert capsys.readouterr().err == listed


def test_from_the_shell_a_mistake_has_no_stack_trace(tmp_path: Path):
    done = run("inspect", str(tmp_path / "nowhere"))
    assert done.returncode == 1 and "nowhere" in done.stderr and "Traceback" not in done.stderr
    assert run("inspect").returncode == 2


def test_a_recipes_settings_can_be_printed_and_given_as_a_file(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["train", "l3net", "--out", str(tmp_path / "run"), "--width", "8"]
    assert main([*words, "--data", "d", "--print-config"]) == 0
    printed = capsys.readouterr().out
    values = yaml.safe_load(printed)
    assert values["width"] == 8 and values["seed"] == 0 and values["data"] == "d"
    settings = tmp_path / "settings.yaml"
    settings.write_text(printed.replace("data: d", "data: /no/such/shards"))
    assert main(["train", "l3net", "--config", str(settings)]) == 1
    assert "/no/such/shards" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["train --config", "train l3net --config", "train l3net --data x --config --out y"])
def test_a_config_without_a_value_is_one_sentence(words: str, capsys: pytest.CaptureFixture):
    assert main(words.split()) == 2
    assert capsys.readouterr().err.splitlines() == ["comodal train: error: --config: expected one argument"]
