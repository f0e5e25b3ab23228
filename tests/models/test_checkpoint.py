"""A model's folder: what is saved comes back, and what is damaged, foreign or hostile is refused by name."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comodal.errors import CheckpointError
from comodal.models import checkpoint
from comodal.models.checkpoint import (
    NothingDrawn,
    compute_weights_checksum,
    load_model,
    make_untrained_copy,
    parse_config_value,
    read_model_about,
    save_model,
)
from comodal.models.l3net.l3net import (
    L3EMBEDDING_L3NET_CONFIG,
    L3Net,
    L3NetConfig,
    make_openl3_config,
    make_small_l3net_config,
)

CONFIGS = [
    make_small_l3net_config(2, 28),
    *(dataclasses.replace(c, width=2) for c in (L3EMBEDDING_L3NET_CONFIG, make_openl3_config("mel256", "librosa"))),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(L3Net(make_small_l3net_config(2, 28)), tmp_path / "run" / "model", {"recipe": "l3net", "steps": 3})
    return tmp_path / "run" / "model"


def edit(folder: Path, **changes: object) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **changes}))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_comes_back_as_it_was(config: L3NetConfig, tmp_path: Path):
    model = L3Net(config).to(memory_format=torch.channels_last)
    save_model(model, tmp_path, {})
    again = load_model(tmp_path)
    assert again.config == config
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_runs_folder_stands_for_its_model(folder: Path):
    assert load_model(folder.parent).config == load_model(folder).config
    about = read_model_about(folder.parent)
    assert (about["recipe"], about["steps"], about["class"]) == ("l3net", 3, "L3Net")


def test_loading_leaves_the_stream_of_chance_alone(folder: Path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_untrained_copy(load_model(folder), seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_neither_written_nor_read(folder: Path, value: float):
    model, before = load_model(folder), (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.fc2.bias[1] = value
    with pytest.raises(CheckpointError, match=r"fc2\.bias"):
        save_model(model, folder, {})
    assert (folder / "model.safetensors").read_bytes() == before
    weights = model.state_dict()
    save_file(weights, folder / "model.safetensors", metadata={"crc32": str(compute_weights_checksum(weights))})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: fc2\.bias"):
        load_model(folder)


def test_an_untrained_model_depends_on_its_seed_alone(folder: Path):
    model = load_model(folder)
    one, same, other = (make_untrained_copy(model, seed).fc1.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "l3net:Path",
        "l3net:nn",
        "l3net:Tower",
        "..cli:Main",
        "vgg:Tower",
        "no_such:Model",
        "l3net",
        7,
        None,
    ],
)
def test_a_class_outside_our_models_is_refused(folder: Path, name: object):
    edit(folder, **{"class": name})
    with pytest.raises(CheckpointError, match=r"config\.json: .* is not one of the models"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "2"}, "config.width is '2', not"),
        ({"width": True}, "config.width is True, not"),
        ({"depth": 5}, r"unknown \['depth'\]"),
        ({"embedding": "softmax"}, "config.embedding is 'softmax'"),
        ({"relu_before_norm": ["conv1_2", 3]}, r"config.relu_before_norm\[1\] is 3"),
        ({"relu_before_norm": ["conv9_9"]}, "unknown layers in relu_before_norm"),
        ({"spectrogram": None}, "config.spectrogram is None, not an object"),
        ({"width": 4}, "has the shape"),
        ({"input_norm": True}, "missing weights"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder: Path, change: dict[str, object], message: str):
    config = json.loads((folder / "config.json").read_text())["config"]
    edit(folder, config={**config, **change})
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(folder)
    assert str(folder) in str(error.value)


def test_a_missing_setting_is_not_guessed(folder: Path):
    config = json.loads((folder / "config.json").read_text())["config"]
    del config["norm_eps"]
    edit(folder, config=config)
    with pytest.raises(CheckpointError, match=r"missing \['norm_eps'\]"):
        load_model(folder)


def test_a_whole_number_stands_for_a_float_and_never_the_other_way_round():
    assert isinstance(parse_config_value(float, 1, "x"), float)
    assert parse_config_value(tuple[float, ...], [1, 2], "x") == (1.0, 2.0)
    with pytest.raises(CheckpointError, match=r"x is 1\.0, not"):
        parse_config_value(int, 1.0, "x")


def test_a_flipped_byte_is_found(folder: Path):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the weights are damaged"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"", b"not json", b"[1]", b"\xff\xfe"])
def test_a_broken_config_is_refused(folder: Path, content: bytes):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(folder)


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(folder)
    assert not (tmp_path / "trapped").exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path, folder: Path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="no model found"):
            load_model(path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(folder)


def test_a_save_that_is_cut_short_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch):
    before = load_model(folder).state_dict()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(L3Net(make_small_l3net_config(2, 28)), folder, {})
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_model(folder).state_dict().items())


def test_what_is_not_a_model_is_not_saved(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is not one of the models"):
        save_model(torch.nn.Linear(1, 1), tmp_path, {})


def test_reading_a_model_draws_nothing(tmp_path: Path):
    """Its weights are those of the file, and random numbers go on as if nothing had been read."""
    torch.manual_seed(0)
    model = L3Net(make_small_l3net_config(4))
    save_model(model, tmp_path / "model", {})
    before = torch.get_rng_state()
    with NothingDrawn():
        layer = torch.nn.Linear(3, 3)
    assert torch.equal(torch.get_rng_state(), before) and layer.weight.shape == (3, 3)
    read = load_model(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor)
