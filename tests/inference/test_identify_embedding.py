"""`comodal identify` tells how an embedding was made: from OpenL3's own outputs, from ours, and from the file alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from comodal.errors import CheckpointError, DataError
from comodal.inference.embed_files import embed_audio
from comodal.inference.identify_embedding import identify_embedding
from tests.models.l3net.test_l3net_parity import reference
from tests.openl3.test_openl3 import make_inputs
from tests.support import openl3_layouts as layouts

RATE = 48_000


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    shutil.copy(layouts.published("audio"), folder / "openl3_audio_mel128_music.h5.gz")
    shutil.copy(layouts.published("image"), folder / "openl3_image_mel128_music.h5.gz")
    return folder


@pytest.mark.parametrize("frontend", ["kapre014", "kapre036", "librosa"])
def test_openl3s_own_vectors_are_told_apart(frontend: str, tmp_path: Path, weights: Path):
    """The fixture's click as OpenL3 embedded it, with the front end of each of its versions."""
    sound, vectors = make_inputs.audio_48k()[3], reference("audio_embeddings")[f"mel128_512_{frontend}"][3:]
    soundfile.write(tmp_path / "click.wav", sound, RATE, subtype="PCM_16")
    np.savez(tmp_path / "click.npz", embedding=vectors, timestamps=np.zeros(1))
    found = identify_embedding(tmp_path / "click.npz", tmp_path / "click.wav", model=weights)
    told = {"kapre014": "kapre 0.1.4", "kapre036": "kapre 0.3", "librosa": "librosa"}[frontend]
    assert found.ranking.best.weights == "openl3_audio_mel128_music.h5.gz"
    assert found.ranking.best.settings.startswith(told)
    assert found.ranking.best.settings.endswith("not centered")
    assert found.ranking.best.distance < 1e-5
    assert (found.ranking.faithful.distance < 1e-5) == (frontend == "kapre014")
    assert ("embed it again" in found.ranking.conclusion) == (frontend != "kapre014")


def test_openl3s_range_of_pictures_is_told(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch):
    """The fixture's 300 x 400 picture as OpenL3 0.4.2 embedded it."""
    Image.fromarray(make_inputs.images()[2]).save(tmp_path / "p.png")
    np.savez(tmp_path / "p.npz", embedding=reference("image_embeddings")["img300x400_512"])
    monkeypatch.setenv("COMODAL_OPENL3", str(weights))
    found = identify_embedding(tmp_path / "p.npz", image=tmp_path / "p.png")
    assert "the input range of OpenL3 0.4.2" in found.ranking.best.settings
    assert found.ranking.best.distance < 1e-5
    assert found.ranking.faithful.distance > 0.1
    assert "no timestamps" in found.content


@pytest.mark.slow
def test_our_own_file_says_how_it_was_made_and_is_believed(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
):
    """In fp32, centered, from a sound at 16 kHz."""
    sound = make_inputs.audio_api()[0]
    soundfile.write(tmp_path / "s.wav", sound, 16_000, subtype="PCM_16")
    model = weights / "openl3_audio_mel128_music.h5.gz"
    embed_audio([tmp_path / "s.wav"], model, hop_seconds=1.0, workers=1, precision="fp32")
    found = identify_embedding(tmp_path / "s.npz", tmp_path / "s.wav", model=model, rows=1)
    assert "mel128 music in fp32, kapre 0.1.4" in found.created_by
    assert (found.features, found.hop_seconds, found.has_even_hops) == (6144, 1.0, True)
    assert "kapre 0.1.4, as the weights were trained, centered" in found.ranking.best.settings
    assert found.ranking.best.distance < 2e-2
    assert "faithful to the weights" in found.ranking.conclusion
    assert "openl3_audio_mel128_music.h5.gz" in capsys.readouterr().out


def test_another_sound_is_told(tmp_path: Path, weights: Path):
    vectors = np.random.default_rng(0).normal(size=(1, 512)).astype(np.float32)
    np.savez(tmp_path / "x.npz", embedding=vectors, timestamps=np.zeros(1))
    soundfile.write(tmp_path / "x.wav", 0.1 * np.random.default_rng(1).normal(size=RATE), RATE)
    found = identify_embedding(tmp_path / "x.npz", tmp_path / "x.wav", model=weights)
    assert "no candidate matches" in found.ranking.conclusion


def test_the_file_alone_tells_its_size_hop_cut_and_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    vectors = np.ones((5, 6144), np.float32)
    vectors[0, :3], vectors[1] = -1.0, 2.0
    np.savez(tmp_path / "v.npz", embedding=vectors, timestamps=np.arange(5) * 0.1)
    found = identify_embedding(tmp_path / "v.npz")
    assert found.content == "audio, all 6144 features"
    assert found.hop_seconds == pytest.approx(0.1)
    assert found.cut.startswith("before the last ReLU")
    assert found.negative == pytest.approx(3 / vectors.size)
    assert found.repeated_vectors == 2
    assert "OpenL3 amplifies to full level" in capsys.readouterr().out


def test_what_is_no_embedding_or_does_not_fit_is_one_sentence(tmp_path: Path, weights: Path):
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04" + bytes(30))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "evil.npz", embedding=np.array([{}], dtype=object))
    np.savez(tmp_path / "two.npz", embedding=np.ones((2, 512)), timestamps=np.zeros(3))
    np.savez(tmp_path / "odd.npz", embedding=np.ones((1, 77)), timestamps=np.zeros(1))
    np.savez(tmp_path / "picture.npz", embedding=np.ones((1, 512)))
    for name, sentence in {
        "half": r"half\.npz: an incomplete or damaged \.npz file",
        "other": "no 'embedding' of rows of floats, only x",
        "evil": r"evil\.npz: an incomplete or damaged \.npz file",
        "two": r"2 vectors and timestamps of the shape \(3,\)",
        "none": r"none\.npz: ",
    }.items():
        with pytest.raises(DataError, match=sentence):
            identify_embedding(tmp_path / f"{name}.npz")
    soundfile.write(tmp_path / "s.wav", np.ones(RATE) / 2, RATE)
    with pytest.raises(CheckpointError, match="no network has 77 features"):
        identify_embedding(tmp_path / "odd.npz", tmp_path / "s.wav", model=weights)
    with pytest.raises(DataError, match="has no timestamps"):
        identify_embedding(tmp_path / "picture.npz", tmp_path / "s.wav", model=weights)
    with pytest.raises(CheckpointError, match="holds the network of the audio, not of the image"):
        Image.fromarray(np.zeros((230, 230, 3), np.uint8)).save(tmp_path / "p.png")
        identify_embedding(
            tmp_path / "picture.npz", image=tmp_path / "p.png", model=weights / "openl3_audio_mel128_music.h5.gz"
        )
