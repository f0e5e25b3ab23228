"""`inspect` says what each kind of folder and file is, and of nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from comodal.analysis.inspect_path import PathDescription, flatten_settings, inspect
from comodal.errors import CheckpointError, DataError
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from tests.support.small_regions import TOKENS, some_images, write_store
from tests.support.small_world import write_world
from tests.support.synthetic_media import tone, write_video


def write_run(folder: Path) -> Path:
    """A run's folder as training leaves it, its last line of the log cut short by a kill."""
    save_model(L3Net(L3NetConfig(width=1, image_size=24)), folder / "model", {"recipe": "l3net"})
    (folder / "config.yaml").write_text("recipe: l3net\nsteps: 20\n")
    lines = [
        {"step": 10, "split": "train", "loss": 0.7, "accuracy": 0.5, "samples_per_second": 100.0, "seconds": 60.0},
        {"step": 10, "split": "validation", "loss": 0.6, "accuracy": 0.75, "seconds": 60.0},
        {"step": 20, "split": "train", "loss": 0.5, "accuracy": 0.7, "samples_per_second": 120.0, "seconds": 120.0},
        {"step": 20, "split": "validation", "loss": 0.55, "accuracy": 0.625, "seconds": 120.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 30, "spl')
    return folder


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = inspect(write_run(tmp_path / "run"))
    assert found.kind == "run"
    assert found.properties["settings"] == {"recipe": "l3net", "steps": 20}
    assert found.properties["validation"]["step"] == 20
    assert found.properties["best_validation_accuracy"] == 0.75
    assert found.properties["model"]["config"]["width"] == 1
    shown = capsys.readouterr().out
    assert "best_validation_accuracy" in shown
    assert "0.75" in shown


@pytest.mark.parametrize(
    "line", ['{"step": "x"}', '{"step": 1, "split": ["a"], "loss": 1}', '{"step": 1, "split": "a"}']
)
def test_a_line_that_is_not_of_metrics_is_shown(tmp_path: Path, line: str):
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl: .*step.* is not a line of metrics"):
        inspect(tmp_path)


def test_a_model_of_the_paper_has_as_many_parameters_as_the_paper_s(tmp_path: Path):
    """9,508,738: what Keras printed for l3embedding's own model."""
    with torch.device("cpu"):
        save_model(L3Net(L3NetConfig()), tmp_path, {})
    found = inspect(tmp_path)
    assert found.kind == "model"
    assert found.properties["parameters"] == 9_508_738
    assert sum(found.properties["parameters_of"].values()) == found.properties["parameters"]
    for name in ("model.safetensors", "config.json"):
        assert inspect(tmp_path / name).properties == found.properties


def test_shards(tmp_path: Path):
    write_world(tmp_path / "train", 4)
    write_world(tmp_path / "validation", 2)
    found = inspect(tmp_path)
    assert found.kind == "shards"
    assert {split: about["clips"] for split, about in found.properties["splits"].items()} == {
        "train": 4,
        "validation": 2,
    }
    assert inspect(tmp_path / "train").properties["splits"]["train"]["clips"] == 4
    assert inspect(tmp_path / "train" / "000000.tar").properties["splits"]["train"]["clips"] == 4


def test_embeddings(tmp_path: Path):
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0]], np.float32)
    np.savez(tmp_path / "v.npz", embedding=vectors[:2], timestamps=np.array([0.0, 0.5]))
    found = inspect(tmp_path / "v.npz")
    assert (found.kind, found.properties["vectors"], found.properties["features"]) == ("embeddings", 2, 2)
    assert (
        found.properties["mean_norm"],
        found.properties["zeros"],
        found.properties["not_finite"],
        found.properties["last_seconds"],
    ) == (2.5, 0.5, 0, 0.5)
    np.savez(tmp_path / "nan.npz", embedding=vectors, timestamps=np.arange(3.0))
    assert inspect(tmp_path / "nan.npz").properties["not_finite"] == 1


def test_scores_and_synthetic_data(tmp_path: Path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "results.json").write_text('{"audio.trained": 0.75}')
    assert inspect(tmp_path / "scores") == PathDescription(tmp_path / "scores", "scores", {"audio.trained": 0.75})
    (tmp_path / "pg").mkdir()
    (tmp_path / "pg" / "about.json").write_text('{"kind": "synthetic", "seed": 3}')
    synthetic = PathDescription(tmp_path / "pg", "synthetic", {"seed": 3, "files": {".json": 1}})
    assert inspect(tmp_path / "pg") == synthetic


def test_media(tmp_path: Path):
    soundfile.write(tmp_path / "s.flac", np.zeros((8000, 2)), 16_000)
    sound = inspect(tmp_path / "s.flac")
    assert (sound.kind, sound.properties["seconds"], sound.properties["channels"]) == ("audio", 0.5, 2)
    Image.new("RGB", (30, 20)).save(tmp_path / "p.png")
    assert inspect(tmp_path / "p.png") == PathDescription(tmp_path / "p.png", "image", {"width": 30, "height": 20})
    video = inspect(write_video(tmp_path / "v.mp4", sound=tone(2.0, 48_000)))
    assert (video.kind, video.properties["width"], video.properties["height"], video.properties["audio_codec"]) == (
        "video",
        160,
        120,
        "aac",
    )


def test_what_is_nothing_or_damaged_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="no such file or folder"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(DataError, match="it has nothing"):
        inspect(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt: not a supported file"):
        inspect(tmp_path / "notes.txt")
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04" + bytes(30))
    with pytest.raises(DataError, match=r"npz: an incomplete or damaged \.npz file"):
        inspect(tmp_path / "half.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="no 'embedding', only x"):
        inspect(tmp_path / "other.npz")


def test_a_pickle_in_an_npz_is_never_opened(tmp_path: Path):
    np.savez(tmp_path / "evil.npz", embedding=np.array([{}], dtype=object), timestamps=np.zeros(1))
    with pytest.raises(DataError, match=r"npz: an incomplete or damaged \.npz file"):
        inspect(tmp_path / "evil.npz")


def test_a_damaged_model_is_told(tmp_path: Path):
    save_model(L3Net(L3NetConfig(width=1)), tmp_path, {})
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 0xFF
    weights.write_bytes(data)
    with pytest.raises(CheckpointError):
        inspect(tmp_path)


def test_nested_settings_get_dotted_names():
    assert flatten_settings({"a": {"b": 1, "c": {}}, "n": 20_000, "x": 0.12345, "t": True}, "") == [
        ("a.b", "1"),
        ("a.c", "{}"),
        ("n", "20,000"),
        ("x", "0.1235"),
        ("t", "True"),
    ]


def test_a_region_store_tells_what_is_in_it_and_when_it_is_damaged(tmp_path: Path):
    write_store(tmp_path / "store", some_images([2, 3]))
    found = inspect(tmp_path / "store")
    assert (found.kind, found.properties["images"], found.properties["regions"], found.properties["tokens"]) == (
        "regions",
        2,
        5,
        TOKENS,
    )
    (tmp_path / "store" / "boxes.bin").write_bytes(b"")
    with pytest.raises(DataError, match="the store is damaged"):
        inspect(tmp_path / "store")
