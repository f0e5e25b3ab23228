"""HEAR's common API, by the rules of its validator (hearvalidator 2021.0.2) and by windows cut by hand."""

import dataclasses
from pathlib import Path

import pytest
import torch

from comodal.errors import CheckpointError
from comodal.hear import HearModel, cut_centered_windows, get_scene_embeddings, get_timestamp_embeddings, load_model
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_openl3_config, make_small_l3net_config

RATE = 48_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_model(L3Net(make_small_l3net_config(2, 32)), path / "model", {})
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> HearModel:
    return load_model(str(folder))


def noise(sounds: int, seconds: float) -> torch.Tensor:
    return torch.rand(sounds, int(seconds * RATE), generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_model_is_a_module_with_the_three_numbers(model: HearModel):
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in (16_000, 22_050, 44_100, 48_000)
    assert type(model.scene_embedding_size) is type(model.timestamp_embedding_size) is int


def test_timestamps_are_milliseconds_every_50_from_the_first_sample_to_the_last(model: HearModel):
    vectors, timestamps = get_timestamp_embeddings(noise(3, 2.0), model)
    assert vectors.dtype == timestamps.dtype == torch.float32
    assert vectors.shape == (3, 41, model.timestamp_embedding_size)
    assert torch.equal(timestamps, torch.arange(0, 2001, 50.0).expand(3, -1))


def test_scenes(model: HearModel):
    vectors = get_scene_embeddings(noise(2, 3.74), model)
    assert vectors.dtype == torch.float32
    assert vectors.shape == (2, model.scene_embedding_size)


def test_a_window_is_centred_on_its_timestamp(folder: Path, model: HearModel):
    audio = noise(1, 1.5)
    vectors, timestamps = get_timestamp_embeddings(audio, model)
    with torch.inference_mode():  # around 0.7 s: from 0.2 to 1.2 s
        expected = L3Net.from_pretrained(folder).embed_audio(audio[:, round(0.2 * RATE) : round(1.2 * RATE)])[0]
    assert timestamps[0, 14] == 700
    assert torch.allclose(vectors[0, 14], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_sound_is_the_same_alone_and_in_a_batch(model: HearModel):
    audio = noise(3, 1.1)
    for function in (lambda audio: get_timestamp_embeddings(audio, model)[0], lambda a: get_scene_embeddings(a, model)):
        together, alone = function(audio), torch.cat([function(sound[None]) for sound in audio])
        assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


def test_sounds_shorter_than_a_window_and_silence(model: HearModel):
    assert get_timestamp_embeddings(noise(1, 0.01), model)[0].shape[:2] == (1, 1)
    assert get_scene_embeddings(torch.zeros(2, 100), model).isfinite().all()


def test_where_silence_is_hidden_it_does_not_count_in_a_scene(tmp_path: Path):
    about = {"representation": "linear", "frontend": "kapre014", "towers": ["audio"], "files": ["x"]}
    save_model(L3Net(dataclasses.replace(make_openl3_config("linear"), width=1)), tmp_path, {"openl3": about})
    model, sound = load_model(str(tmp_path)), noise(1, 1.0)
    followed = torch.cat([sound, torch.zeros(1, 4 * RATE)], 1)
    # Windows with the sound in them stand at 0, 250, ..., 1250 ms (of the last, the last quarter of a second).
    heard = get_timestamp_embeddings(followed, model)[0][0, :26:5]
    assert torch.allclose(get_scene_embeddings(followed, model)[0], heard.mean(0), rtol=1e-4, atol=1e-6)


def test_what_is_wrong_is_said(model: HearModel, tmp_path: Path):
    with pytest.raises(ValueError, match=r"\(recordings, samples\); got \(48000,\)"):
        cut_centered_windows(torch.zeros(RATE), model, 2400)
    with pytest.raises(ValueError, match=r"got \(1, 0\)"):
        get_scene_embeddings(torch.zeros(1, 0), model)
    with pytest.raises(CheckpointError, match="no model found"):
        load_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="give the run folder"):
        load_model()
    slow = dataclasses.replace(make_small_l3net_config(1, 32).spectrogram, sample_rate=8_000)
    save_model(L3Net(dataclasses.replace(make_small_l3net_config(1, 32), spectrogram=slow)), tmp_path, {})
    with pytest.raises(CheckpointError, match="takes audio at 8000 Hz; HEAR has 16000"):
        load_model(str(tmp_path))
