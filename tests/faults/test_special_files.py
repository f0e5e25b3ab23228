"""A FIFO in place of a file is refused at once by every command; it would block whoever opens it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from comodal.analysis.inspect_path import inspect
from comodal.cli.program import MAX_SENTENCE_CHARACTERS, main, shorten_sentence
from comodal.data.captions.caption_files import read_captions
from comodal.data.regions.safe_unpickler import load_npy
from comodal.errors import CheckpointError, DataError
from comodal.files import fingerprint_file, open_regular_file
from comodal.inference.openl3_files import read_openl3_weights
from comodal.models.checkpoint import load_model
from comodal.models.convert.state_dicts import read_tensors
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.regions.detector_files import read_detector

pytestmark = pytest.mark.filterwarnings("ignore::comodal.errors.MediaWarning")


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    L3Net(make_small_l3net_config(width=4, image_size=32)).save_pretrained(folder)
    return folder


def test_a_fifo_is_not_opened(fifo: Path, model: Path, tmp_path: Path):
    with pytest.raises(OSError, match="not a regular file"):
        open_regular_file(fifo)
    assert fingerprint_file(fifo) == ""
    with pytest.raises(DataError, match="pipe"):
        load_npy(fifo)
    with pytest.raises(DataError, match="pipe: neither a regular file nor a folder"):
        inspect(fifo)
    for read_weights in (read_openl3_weights, read_detector, read_tensors):
        with pytest.raises(CheckpointError, match=r"pipe: .*not a regular file"):
            read_weights(fifo)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes((model / "config.json").read_bytes())
    os.mkfifo(tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("command", "suffix"),
    [
        ("extract DATA OUT --detector MODEL --boxes grid --grid 2 --workers 1 --backend sequential", ".png"),
        ("prepare videos DATA OUT --workers 1 --backend sequential", ".mp4"),
        ("embed audio DATA --model MODEL --out OUT --workers 1", ".wav"),
        ("embed image DATA --model MODEL --out OUT --workers 1", ".png"),
    ],
)
def test_a_command_goes_on_without_a_fifo(command: str, suffix: str, model: Path, tmp_path: Path):
    """It ends by itself, whatever its exit status: nothing waits for a writer."""
    data = tmp_path / "data"
    data.mkdir()
    if suffix == ".wav":
        soundfile.write(data / "good.wav", np.sin(np.arange(48_000) / 20), 48_000)
    else:
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(data / "good.png")
    os.mkfifo(data / f"pipe{suffix}")
    names = {"DATA": data, "OUT": tmp_path / "out", "MODEL": model}
    words = [str(names.get(word, word)) for word in command.split()]
    done = subprocess.run(
        [sys.executable, "-m", "comodal", *words], capture_output=True, text=True, timeout=100, check=False
    )
    assert "Traceback" not in done.stderr and done.returncode in (0, 1), done.stderr


def test_a_caption_that_is_not_unicode_is_left_out(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(
        '{"image": "a.jpg", "caption": "a \\ud800 dog"}\n{"image": "b.jpg", "caption": "a"}\n'
    )
    found = read_captions(tmp_path / "a.jsonl")
    assert [caption.caption for caption in found.captions] == ["a"] and found.refused.total() == 1


def test_a_message_is_bounded():
    assert shorten_sentence("short") == "short"
    text = shorten_sentence("begin " + "x" * 5_000_000 + " end")
    assert len(text) < MAX_SENTENCE_CHARACTERS + 10 and text.startswith("begin ") and text.endswith(" end")


@pytest.mark.parametrize("option", ["--validation-pairs", "--weight-decay"])
def test_a_negative_number_is_refused_before_the_training(option: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "shards").mkdir()
    words = ["train", "l3net", "--data", str(tmp_path / "shards"), "--out", str(tmp_path / "run"), option, "-1"]
    assert main(words) == 1
    assert option[2:].replace("-", "_") in capsys.readouterr().err
