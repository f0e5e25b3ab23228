"""The command line from outside: what a user types, what comes back, and never a stack trace for a mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from comodal.cli import COMMANDS, main, recipes, spelled


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "comodal", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [name.split() for name, (target, _) in COMMANDS.items() if target], ids=" ".join)
def test_every_command_explains_itself(words: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as left:
        main([*words, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text, "a command shows how it is typed"
    assert f"comodal {' '.join(words)}" in text.split("examples:")[1]


def test_a_recipe_explains_its_parameters_and_the_trainers(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main(["train", "l3net", "--help"])
    text = capsys.readouterr().out
    assert "--learning_rate" in text
    assert "--resume" in text
    assert "torchrun" in text


def test_recipes_are_the_files_of_the_folder(capsys: pytest.CaptureFixture):
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in recipes())
    assert {"l3net", "vilbert"} <= set(recipes())


def test_options_may_be_written_as_people_write_them():
    hints = {"resume": bool, "classes": "Sequence[str]", "short_side": int}
    assert spelled(["--from", "grid", "--zero-shot"], {"from_": str, "zero_shot": bool}) == [
        "--from_", "grid", "--zero_shot=true",
    ]  # fmt: skip
    assert spelled(["--short-side", "64", "--resume"], hints) == ["--short_side", "64", "--resume=true"]
    assert spelled(["--resume", "false", "a-b"], hints) == ["--resume", "false", "a-b"]
    like_flags = ["b.resume", "c.classes", "a,b"]  # the third letter on is the name of a flag or list
    assert spelled(like_flags, hints) == like_flags
    assert spelled(["--classes", "singing,tap dancing"], hints) == ["--classes", "[singing,tap dancing]"]


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["prepare", "vidoes"], 2, "no command 'prepare vidoes'"),
        (["train", "l4net"], 2, "there is no recipe 'l4net'"),
        (["prepare", "videos", "/no/such/folder", "out"], 1, "/no/such/folder"),
        (["train", "l3net", "--data", "/no/such/shards", "--out", "{tmp}/run"], 1, "/no/such/shards"),
        (["evaluate", "esc50", "--model", "/no/such/run", "--data", "/no/such/data"], 1, "/no/such/"),
        (["inspect", "/no/such/file"], 1, "/no/such/file"),
        (["embed", "audio", "/no/such.wav", "--model", "/no/such/run"], 1, "/no/such"),
        (["train", "l3net", "--data", "x", "--out", "y", "--steps", "many"], 2, "steps"),
    ],
)
def test_a_mistake_ends_in_one_sentence(words: list[str], status: int, sentence: str, tmp_path: Path):
    done = run(*(word.format(tmp=tmp_path) for word in words))
    assert done.returncode == status, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipes_settings_can_be_printed_and_given_as_a_file(tmp_path: Path):
    printed = run("train", "l3net", "--data", "d", "--out", str(tmp_path / "run"), "--width", "8", "--print_config")
    assert printed.returncode == 0
    assert "width: 8" in printed.stdout
    settings = tmp_path / "settings.yaml"
    settings.write_text(printed.stdout.replace("data: d", "data: /no/such/shards"))
    done = run("train", "l3net", "--config", str(settings))
    assert done.returncode == 1
    assert "/no/such/shards" in done.stderr
