"""OpenL3's weights in every layout, and files that are none of them: the tensors are right or one sentence says why."""

import gzip
import shutil
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from comodal.errors import CheckpointError
from comodal.inference.openl3_files import convert_openl3, find_published_weights, load_openl3, read_openl3_weights
from comodal.models.checkpoint import load_model, read_model_about
from comodal.models.l3net.l3net import L3Net
from comodal.models.l3net.l3net import make_openl3_config as openl3_config
from tests.models.l3net.test_l3net_parity import correspondence, put_weights
from tests.support import openl3_layouts as layouts


def tower(model: L3Net, modality: str) -> dict[str, torch.Tensor]:
    part = model.image_tower if modality == "image" else model.audio_tower
    tensors = {name: tensor for name, tensor in part.state_dict().items() if "num_batches" not in name}
    return {name: tensor for name, tensor in tensors.items() if "conv4_2.norm" not in name}


@cache
def expected_tower(modality: str) -> dict[str, torch.Tensor]:
    expected = L3Net(openl3_config("mel128"))
    put_weights(expected.image_tower if modality == "image" else expected.audio_tower, modality)
    return tower(expected, modality)


@cache
def expected_network() -> L3Net:
    return correspondence()[0]


def assert_is_the_fixture(model: L3Net, modality: str) -> None:
    """The same as what the parity tests put there by hand, with which OpenL3's own outputs agree."""
    ours, wanted = tower(model, modality), expected_tower(modality)
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in ours)


def parts(modality: str, representation: str | None = None) -> list:
    front = layouts.constants(representation) if representation else None
    return layouts.named(modality, 8, 10, front)


def torchopenl3_state() -> dict[str, torch.Tensor]:
    """torchopenl3's names, its front end stored beside the weights."""
    state = {"speclayer.dft_real_kernels": torch.zeros(1025, 1, 2048), "speclayer.mel_basis": torch.zeros(128, 1025)}
    words = ("weight", "bias", "running_mean", "running_var")
    for number, layer in enumerate(layouts.layers("audio"), 2):
        name = f"batch_normalization_{number // 2}" if len(layer) == 4 else f"conv2d_{number // 2}"
        for word, (_, array) in zip(words, layer, strict=False):
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            state[f"{name}.{word}"] = tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor
        if len(layer) == 4:
            state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    return state


@pytest.mark.parametrize("modality", ["audio", "image"])
def test_version_04_has_no_front_end(modality: str, tmp_path: Path):
    path = shutil.copy(layouts.published(modality), tmp_path / f"openl3_{modality}_mel256_music-v0_4_0.h5.gz")
    found = load_openl3(path)
    assert_is_the_fixture(found.model, modality)
    assert found.towers == (modality,)
    assert (found.about["representation"], found.about["content"]) == ("mel256", "music")
    assert not found.load_report.unused


@pytest.mark.parametrize("representation", ["linear", "mel128", "mel256"])
def test_versions_02_and_03_begin_with_the_front_end(representation: str, tmp_path: Path):
    """Whatever the file is called, its constants tell the spectrogram."""
    path = layouts.write_flat(tmp_path / "weights.h5", parts("audio", representation))
    found = load_openl3(path)
    assert_is_the_fixture(found.model, "audio")
    assert found.about["representation"] == representation
    assert found.model.config.spectrogram == openl3_config(representation, "kapre014").spectrogram
    assert all("spectrogram" in name for name in found.load_report.unused)


def test_a_whole_model_that_keras_saved(tmp_path: Path):
    path = tmp_path / "openl3_audio_linear_env.h5"
    layouts.write_flat(path, parts("audio"), inside="model_weights", text=True)
    assert_is_the_fixture(load_openl3(path).model, "audio")


@pytest.mark.parametrize("write", [layouts.write_whole, layouts.write_whole_of_several_gpus])
def test_networks_within_networks(write, tmp_path: Path):
    """l3embedding's checkpoints: what is trained comes first, on several GPUs one level deeper."""
    found = load_openl3(write(tmp_path / "model_best.h5"))
    assert found.towers == ("image", "audio")
    assert found.about["representation"] == "mel128"
    assert_is_the_fixture(found.model, "image")
    assert_is_the_fixture(found.model, "audio")
    expected = expected_network()
    for name in ("image_tower", "audio_tower"):
        ours, wanted = (m.get_submodule(f"{name}.layers.conv4_2.norm").state_dict() for m in (found.model, expected))
        assert all(torch.equal(ours[k], wanted[k]) for k in ("weight", "bias", "running_mean", "running_var"))
    assert torch.equal(found.model.fc1.weight, expected.fc1.weight)
    assert torch.equal(found.model.fc2.weight, expected.fc2.weight)
    assert torch.allclose(found.model.fc1.bias, torch.linspace(-1, 1, 128))
    assert not found.load_report.new


def test_l3embeddings_first_models_have_no_norm_of_the_input(tmp_path: Path):
    """cnn_L3_orig: another spectrogram, too (section 1.2 of the specification of l3embedding's model types)."""
    path = layouts.write_flat(tmp_path / "openl3_audio_linear_music.h5", parts("audio")[2:])
    found = load_openl3(path)
    assert not found.model.config.input_norm
    assert found.model.config.spectrogram.scale == "clamped_log"


def test_torchopenl3(tmp_path: Path):
    path = tmp_path / "torchopenl3_mel128_env_512.pth.tar"
    torch.save(torchopenl3_state(), path)
    found = load_openl3(path)
    assert_is_the_fixture(found.model, "audio")
    assert (found.about["representation"], found.about["content"]) == ("mel128", "env")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in torchopenl3_state().items()}}, path)
    assert read_openl3_weights(path).keys() == torchopenl3_state().keys()


def test_a_list_of_names_that_keras_split(tmp_path: Path):
    """Keras cuts an attribute of more than 64 KB into pieces."""
    path = layouts.write_flat(tmp_path / "openl3_image_mel256_env.h5", parts("image"))
    with h5py.File(path, "r+") as file:
        names = list(file.attrs["layer_names"])
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:7], names[7:]
    assert_is_the_fixture(load_openl3(path).model, "image")


def test_a_conversion_names_every_tensor_and_loads_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sound = layouts.write_flat(tmp_path / "openl3_audio_mel256_music.h5", parts("audio", "mel256"))
    report = convert_openl3(sound, tmp_path / "model", layouts.published("image"))
    model = load_model(tmp_path / "model")
    assert_is_the_fixture(model, "audio")
    assert_is_the_fixture(model, "image")
    lines = (tmp_path / "model" / "report.txt").read_text().splitlines()
    assert (len(report.filled), len(report.new), len(report.unused)) == (96, 12, 3)  # 2 x (16 + 32); 2 x 4 + 4
    assert len(lines) == 1 + 96 + 12 + 3
    assert "not used: melspectrogram_1/melspectrogram_1/real_kernels:0" in lines
    assert read_model_about(tmp_path / "model")["openl3"]["towers"] == ["audio", "image"]
    convert_openl3(sound, tmp_path / "half")
    assert "no weights of the image" in capsys.readouterr().out
    assert not load_model(tmp_path / "half").image_tower.layers["conv1_1"].convolution.weight.any()


def damaged(path: Path, kind: str) -> Path:
    whole = layouts.published("audio").read_bytes()
    plain = gzip.decompress(whole)
    contents = {
        "cut.h5.gz": whole[: len(whole) // 2],
        "cut.h5": plain[: len(plain) // 2],
        "empty.h5": b"",
        "text.h5": b"<html>404</html>",
        "text.h5.gz": gzip.compress(b"not HDF5"),
    }
    (path / kind).write_bytes(contents[kind])
    return path / kind


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("cut.h5.gz", "damaged or truncated .gz file"),
        ("cut.h5", "damaged or truncated HDF5 file"),
        ("empty.h5", "not a readable file of weights"),
        ("text.h5", "refused, it holds more than tensors|not a readable file of weights"),
        ("text.h5.gz", "the unpacked content is not HDF5"),
    ],
)
def test_damaged_files_are_one_sentence(kind: str, sentence: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=sentence) as raised:
        convert_openl3(damaged(tmp_path, kind), tmp_path / "out", representation="linear")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_foreign_and_incomplete_networks_are_one_sentence(tmp_path: Path):
    rng = np.random.default_rng(0)

    def refused(layers: list, sentence: str) -> None:
        path = layouts.write_flat(tmp_path / "openl3_audio_linear_music.h5", layers)
        with pytest.raises(CheckpointError, match=sentence) as raised:
            load_openl3(path)
        assert "\n" not in str(raised.value)

    def convolution(name: str, *shape: int) -> tuple[str, list]:
        return name, [("kernel", rng.normal(size=shape).astype(np.float32)), ("bias", np.zeros(shape[-1], np.float32))]

    refused([convolution("a", 5, 5, 1, 10)], "not the weights of OpenL3")
    refused([convolution("a", 3, 3, 4, 64)], "not the weights of OpenL3")
    refused([("dense", [("kernel", np.zeros((5, 2), np.float32))])], "it has no convolution")
    whole = parts("audio")
    refused(whole[:-3], "a tensor is missing: the audio's conv4_2 has no kernel|a tensor is missing")
    refused([(name, layer[:1] if name == "conv2d_9" else layer) for name, layer in whole], "missing|has the shape")
    lacking = [(name, layer[:3] if name == "batch_normalization_17" else layer) for name, layer in whole]
    refused(lacking, "a tensor is missing: the variance of norm 8")
    turned = [
        (name, [(kind, array.T if array.ndim == 4 and name == "conv2d_10" else array) for kind, array in layer])
        for name, layer in whole
    ]
    refused(turned, "conv2_1 of OpenL3")
    for kind in ("bias", "beta", "moving_mean"):
        refused(
            [*whole, ("z", [(kind, np.ones(512, np.float32))])], rf"z/{kind}:0 is in the file, but the network has no"
        )
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(CheckpointError, match="not the weights of a Keras model"):
        read_openl3_weights(tmp_path / "other.h5")


def test_a_pickle_that_runs_something_is_not_run(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"a": Evil()}, tmp_path / "evil.pth.tar")
    with pytest.raises(CheckpointError, match="it holds more than tensors"):
        load_openl3(tmp_path / "evil.pth.tar")
    assert not (tmp_path / "ran").exists()


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("comodal.inference.openl3_files.MAX_WEIGHTS_BYTES", 1000)
    (tmp_path / "bomb.h5.gz").write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(CheckpointError, match="it unpacks to more than 1,000 bytes"):
        load_openl3(tmp_path / "bomb.h5.gz")


def test_what_does_not_say_its_spectrogram_is_asked_for_it(tmp_path: Path):
    with pytest.raises(CheckpointError, match="with --representation linear, mel128 or mel256"):
        load_openl3(layouts.published("audio"))
    assert load_openl3(layouts.published("audio"), representation="mel128").about["representation"] == "mel128"
    path = layouts.write_flat(tmp_path / "weights.h5", parts("audio", "mel256"))
    with pytest.raises(CheckpointError, match="its frontend computes mel256, not linear"):
        load_openl3(path, representation="linear")
    with pytest.raises(CheckpointError, match="which the other file has as well"):
        load_openl3(path, path)


def test_published_files_are_looked_for_and_their_absence_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COMODAL_OPENL3", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"get https://\S+openl3_audio_mel256_music-v0_4_0\.h5\.gz .*COMODAL_OPENL3"
    ):
        find_published_weights("audio", "mel256", "music")
    (tmp_path / "mine").mkdir()
    (tmp_path / "comodal" / "openl3").mkdir(parents=True)
    cached = tmp_path / "comodal" / "openl3" / "openl3_audio_mel256_music.h5"
    cached.touch()
    assert find_published_weights("audio", "mel256", "music") == cached
    (tmp_path / "mine" / "torchopenl3_mel256_music_512.pth.tar").touch()
    assert find_published_weights("audio", "mel256", "music").name == "torchopenl3_mel256_music_512.pth.tar"
    (tmp_path / "mine" / "openl3_audio_mel256_music-v0_2_0.h5.gz").touch()
    assert find_published_weights("audio", "mel256", "music").name == "openl3_audio_mel256_music-v0_2_0.h5.gz"
