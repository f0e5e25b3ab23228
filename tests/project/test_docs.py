"""What README and docs show is run: Python blocks on small synthetic media. The real parser reads all shell lines, and
test_docs_commands.py runs them.

A block that cannot run here has a comment above it: `<!-- not run: needs ... -->`, which says network, GPU or data.
"""

import json
import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import comodal
from comodal.cli.parser import CommandParser, find_config_argument
from comodal.cli.program import build_command_page, build_recipe_page
from comodal.cli.tables import list_all_commands
from comodal.data.regions.region_store import RegionStore
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.recipes.recipe_configs import read_recipe_config
from comodal.regions.extract import extract_regions
from comodal.registry import RECIPES, TASKS
from comodal.tasks.vision_language.vilbert_fine_tuning import ViLBERTFineTuneConfig, load_fine_tuning_data
from tests.support.paths import ROOT
from tests.support.small_tasks import config as small_config
from tests.support.synthetic_media import tone, write_video

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?:<!-- not run: needs (?P<needs>[^>]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.DOTALL)
INLINE = re.compile(r"`comodal ([^`]+)`")
OPTION = re.compile(r"`(--[A-Za-z][A-Za-z-]*)")  # not the id of a video, which may begin with dashes
COMMANDS = list_all_commands()
PAGE_NAMES = [*COMMANDS, *(f"train {name}" for name in RECIPES)]
RATE = 48_000
DEMO_FILES = {
    "recording.wav": "synthetic/esc50/audio/1-100000-A-0.wav",
    "photos/0.png": "synthetic/images/test/ball/00200.jpg",
    "photos/1.png": "synthetic/images/test/ball/00210.jpg",
    "video.mp4": "videos/videos/video-00009.mp4",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    number: int
    language: str
    text: str
    needs: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def blocks_of(path: Path) -> list[Block]:
    found = FENCE.finditer(path.read_text(encoding="utf-8"))
    return [Block(path.stem, n, one["language"], one["text"], one["needs"] or "") for n, one in enumerate(found)]


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
LINES = [
    pytest.param(line.strip(), id=f"{block}: {line.strip()[:60]}")
    for block in BLOCKS
    if block.language in ("", "bash")
    for line in block.text.replace("\\\n", " ").splitlines()
    if line.strip()
]


def test_every_block_is_of_a_kind_that_is_tested():
    assert {block.language for block in BLOCKS} <= {"", "bash", "python", "toml"}
    assert all(re.search("network|GPU|weights|data", block.needs) for block in BLOCKS if block.needs)
    fences = sum(len(re.findall(r"^```", path.read_text(encoding="utf-8"), re.MULTILINE)) for path in PAGES)
    assert fences == 2 * len(BLOCKS)


def parser_of(words: list[str]) -> tuple[CommandParser, list[str]]:
    """The parser of the command that the words begin with, and its own words."""
    if words[0] == "train":
        config = find_config_argument(words[1:])
        is_named = not words[1].startswith("-") or config is None
        name = words[1] if is_named else read_recipe_config(config).recipe
        assert name in RECIPES, name
        page = build_recipe_page(name)
        return CommandParser(page.options, page.format_full), words[1 + is_named :]
    length = 2 if " ".join(words[:2]) in COMMANDS else 1
    page = build_command_page(" ".join(words[:length]))
    return CommandParser(page.options, page.format_full), words[length:]


def check_command(words: list[str]) -> None:
    """The command exists, its options exist, their values are of their types, and nothing required is missing."""
    parser, rest = parser_of(words)
    assert parser.list_missing(parser.parse(rest).values) == []


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_shell_is_understood(line: str):
    words = shlex.split(line, comments=True)
    program = words[0] if words else "#"
    if program == "comodal":
        check_command(words[1:])
    elif program == "make":
        targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"(?:comodal|\.)\[([^]]+)\]", line)
        assert {extra for names in named for extra in names.split(",")} <= set(extras)
    elif words[:2] and words[0] == "python" and words[1].startswith("benchmarks/"):
        text = (ROOT / words[1]).read_text()
        assert all(f'"{flag}"' in text for flag in re.findall(r"--[a-z-]+", line))
    else:
        assert program in {"#", "export", "pytest"} or words[:3] == ["python", "-m", "heareval.embeddings.runner"], line


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_the_examples_of_a_command_are_understood(name: str):
    page = build_recipe_page(name.split()[1]) if name.startswith("train ") else build_command_page(name)
    for line in page.docstring.examples:
        words = shlex.split(line, comments=True)
        check_command(words[words.index("comodal") + 1 :])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_within_the_text_exist_and_have_such_options(path: Path):
    """A group stands for any of its commands, as in `comodal embed --engine onnx`."""
    for code in INLINE.findall(path.read_text(encoding="utf-8")):
        words = shlex.split(code.replace("…", "").replace("|", " "))
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        names = [word for word in words if not word.startswith("--")]
        if not names or names[0] in {"help", "list", "COMMAND"}:
            continue
        named = [one for one in (names[:2], names[:1]) if " ".join(one) in PAGE_NAMES]
        candidates = named[:1] or [name.split() for name in PAGE_NAMES if name.split()[0] == names[0]]
        assert candidates, code
        known = {flag for one in candidates for flag in flags_of(one)}
        assert flags <= known | {"--help", "--config", "--print-config"}, code


def test_options_within_the_text_of_the_tasks_exist():
    known = {flag for name in PAGE_NAMES for flag in flags_of(name.split())} | {"--config"}
    for path in (ROOT / "docs" / "tasks").rglob("*.md"):
        named = OPTION.findall(FENCE.sub("", path.read_text(encoding="utf-8")))
        assert {flag.replace("--no-", "--") for flag in named} <= known, path


def test_every_task_has_its_command_on_a_page():
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "tasks").rglob("*.md")]
    lines = {" ".join(words[:3]) for page in pages for line in page.splitlines() if (words := line.split())}
    assert {f"comodal evaluate {name}" for name in TASKS} <= lines


def flags_of(words: list[str]) -> list[str]:
    parser, _ = parser_of(words)
    return [flag for option in parser.options if not option.is_positional for flag in option.flags]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the Python blocks name: media, and models with random weights."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for path in (*(folder / "photos" / f"{number}.png" for number in range(4)), folder / "kitchen.jpg"):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)
    soundfile.write(folder / "recording.wav", tone(2.0, RATE), RATE)
    write_video(folder / "video.mp4", sound=tone(2.0, RATE))
    for source, name in DEMO_FILES.items():
        (folder / "demo" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / source, folder / "demo" / name)
    torch.manual_seed(0)
    for name in ("run", "RUN", "demo/run"):
        save_model(L3Net(make_small_l3net_config(2, 32)), folder / name / "model", {})
    extract_regions(folder / "photos", folder / "regions", str(folder / "run"), grid=2, workers=1)
    save_vilbert(folder, "runs/vilbert", ())
    save_vilbert(folder, "runs/vqa", (Head("vqa", "answers", 3, 8),))
    (folder / "results" / "vqa").mkdir(parents=True)
    card = {"kind": "card", "task": "vqa", "title": "VQA v2", "split": "val2014", "model": "run", "regions": None}
    card |= {
        "scores": {"accuracy": {"value": 0.75, "low": 0.7, "high": 0.8, "paper": None}},
        "counts": {"items": 8},
        "files": {},
        "seeds": {},
        "settings": {},
        "versions": {},
    }
    (folder / "results" / "vqa" / "card.json").write_text(json.dumps(card))
    return folder


def save_vilbert(folder: Path, name: str, heads: tuple[Head, ...]) -> None:
    """A run as training leaves it."""
    store, words = RegionStore(folder / "regions"), WordPieceTokenizer.from_texts(["what a day", "a dog on a beach"])
    sizes = {**vars(small_config(words.size)), "region_feature_dim": store.dim}
    vilbert = type(small_config(4))(**sizes)
    model = folder / name / "model"
    save_model(TaskModel(TaskModelConfig(vilbert, heads)) if heads else ViLBERT(vilbert), model, {})
    words.save(model)
    (model / "regions.json").write_bytes(store.encode_provenance())
    if heads:
        (model / "answers.json").write_text(json.dumps(["yes", "no", "two"]))


def names_for(block: Block, folder: Path) -> dict[str, Any]:
    """What a block takes as given."""
    if block.page == "adding_a_task":
        fine_tune = ViLBERTFineTuneConfig(start_from="scratch", epochs=1.0, batch_size=2, workers=0)
        parts = load_fine_tuning_data(folder / "runs" / "vilbert", folder / "regions", fine_tune)
        return {
            "parts": parts,
            "fine_tune": fine_tune,
            "tokenizer": parts.tokenizer,
            "row": 0,
            "fingerprint": "of the data",
        }
    if block.page == "export" and "hear" in block.text:
        return {"waveforms": torch.from_numpy(np.stack([tone(1.0, RATE)] * 2))}
    if block.page == "export":
        comodal.export(folder / "RUN", "onnx", only=["audio"])  # which the block opens
    return {}


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch):
    if block.needs:
        compile(block.text, str(block), "exec")
        return
    monkeypatch.chdir(place)
    exec(compile(block.text, str(block), "exec"), names_for(block, place))
