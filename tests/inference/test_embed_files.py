"""Embedding of files: OpenL3's windows and timestamps, bounded memory, and nothing lost to a bad file."""

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from comodal.errors import DataError
from comodal.inference.embed_files import embed_audio, embed_image, embed_video
from comodal.inference.embed_inputs import get_audio_embedding, get_image_embedding
from comodal.inference.embedder import EmbedderOptions, load_embedder
from comodal.inference.embedding_rows import compute_hop_samples
from comodal.media.audio_windows import count_windows, iterate_windows
from comodal.media.image import read_image
from comodal.models.checkpoint import load_model, save_model
from comodal.models.l3net.fused_vgg import make_fast_l3net
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from tests.support.synthetic_media import tone, write_video

RATE = 48_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=2, image_size=32)), folder, {})
    return folder


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=round(seconds * RATE))).astype(np.float32)


def blocks_of(sound: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
    start = 0
    while start < len(sound):
        size = sizes[start % len(sizes)]
        yield sound[start : start + size]
        start += size


# Shapes of what OpenL3 0.4.2 itself returns for these lengths (get_audio_embedding; hop, center).
OPENL3_COUNTS = [
    (1.7, 0.1, True, 13), (1.25, 0.1, True, 9), (0.3, 0.1, True, 1),
    (1.7, 0.5, False, 3), (1.25, 0.5, False, 2), (0.3, 0.5, False, 1),
    (1.7, 0.3, True, 5), (1.25, 0.3, True, 4), (0.3, 0.3, True, 1),
]  # fmt: skip


@pytest.mark.parametrize(("seconds", "hop_seconds", "center", "windows"), OPENL3_COUNTS)
def test_as_many_windows_and_the_same_times_as_openl3(
    model: Path, seconds: float, hop_seconds: float, center: bool, windows: int
):
    assert count_windows(round(seconds * RATE), RATE, int(hop_seconds * RATE), center) == windows
    vectors, times = get_audio_embedding(noise(seconds), RATE, load_model(model), hop_seconds, center)
    assert len(vectors) == windows
    assert np.allclose(times, np.arange(windows) * hop_seconds)


def windows_of_openl3(sound: np.ndarray, window: int, hop: int, center: bool) -> np.ndarray:
    """The windows cut from a whole sound as openl3/core.py does."""
    if center:
        sound = np.pad(sound, (window // 2, 0))
    if len(sound) < window:
        sound = np.pad(sound, (0, window - len(sound)))
    else:
        count = int(np.ceil((len(sound) - window) / hop))
        sound = np.pad(sound, (0, count * hop + window - len(sound)))
    return np.stack([sound[start : start + window] for start in range(0, len(sound) - window + 1, hop)])


@pytest.mark.parametrize("hop", [1, 3, 7, 10, 11, 25])
@pytest.mark.parametrize("length", [1, 4, 9, 10, 11, 60, 97])
@pytest.mark.parametrize("center", [True, False])
def test_windows_of_a_stream_are_those_of_the_whole(hop: int, length: int, center: bool):
    sound = np.random.default_rng(0).normal(size=length).astype(np.float32)
    expected = windows_of_openl3(sound, 10, hop, center)
    assert count_windows(length, 10, hop, center) == len(expected)
    for sizes in ([1], [100], [3, 17, 5]):
        for batch_size in (1, 4):
            batches = list(iterate_windows(blocks_of(sound, sizes), 10, hop, center, batch_size))
            assert max(len(batch) for batch in batches) <= batch_size
            assert np.array_equal(np.concatenate(batches), expected)


@pytest.mark.parametrize("hop", [1.5, 7.25, 10.4, 23.7])
@pytest.mark.parametrize("length", [9, 60, 971])
def test_windows_of_a_fraction_of_a_sample_start_at_the_nearest_sample(hop: float, length: int):
    """So timestamps of k * hop stay right: window 40 of a hop of 7.25 samples starts at 290, and not at 280."""
    sound = np.arange(1, length + 1, dtype=np.float32)
    for sizes in ([1], [1000], [3, 17, 5]):
        windows = np.concatenate(list(iterate_windows(blocks_of(sound, sizes), 10, hop, False, 4)))
        assert len(windows) == count_windows(length, 10, hop, False)
        for place, window in enumerate(windows):
            start = int(np.floor(place * hop + 0.5))
            assert np.array_equal(window, np.pad(sound, (0, 100))[start : start + 10])
        covered = np.floor((len(windows) - 1) * hop + 0.5) + 10
        assert covered >= length and covered - hop - 1 < length


def test_openl3s_hop_is_whole_only_where_openl3_is_reproduced():
    assert compute_hop_samples(0.02001, 48_000, None) == pytest.approx(960.48)
    assert compute_hop_samples(0.02001, 48_000, "0.4.2") == 960


def test_windows_hold_no_more_for_a_longer_sound():
    def peak(blocks: int) -> int:
        tracemalloc.start()
        for _ in iterate_windows((np.zeros(RATE, np.float32) for _ in range(blocks)), RATE, 4800, True, 8):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(600) < 1.1 * peak(60)


@pytest.mark.slow
def test_a_long_file_takes_no_more_memory_than_a_short_one(tmp_path: Path, model: Path):
    """The whole path, file to file, in a process of its own. Read whole, 15 minutes at 48 kHz would be 173 MB."""

    def most_megabytes(seconds: int) -> float:
        path = tmp_path / f"{seconds}.wav"
        with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
            for second in range(seconds):
                file.write(0.1 * noise(1, second)[:8000])
        code = (
            "import resource, sys\nfrom pathlib import Path\nimport torch\ntorch.set_num_threads(1)\n"
            "from comodal.inference.embed_files import embed_audio\n"
            f"embed_audio([Path({str(path)!r})], Path({str(model)!r}), Path({str(tmp_path)!r}), hop_seconds=2.0)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    assert most_megabytes(900) < most_megabytes(30) + 25


def test_a_file_gives_what_the_python_function_gives(tmp_path: Path, model: Path):
    sound = noise(2.3)
    soundfile.write(tmp_path / "street.wav", sound, RATE, subtype="FLOAT")
    counts = embed_audio([tmp_path / "street.wav"], model, tmp_path / "out", hop_seconds=0.25, workers=1)
    with np.load(tmp_path / "out" / "street.npz", allow_pickle=False) as found:
        assert sorted(found) == ["embedding", "timestamps"]
        vectors, times = get_audio_embedding(sound, RATE, load_model(model), hop_seconds=0.25)
        assert np.array_equal(found["embedding"], vectors)
        assert np.array_equal(found["timestamps"], times)
        assert found["embedding"].dtype == np.float32
    assert (counts.written, counts.skipped, counts.windows) == (1, 0, len(times))
    assert (counts.noted, counts.other_files) == (0, 0)


def test_a_window_is_centred_on_its_time(model: Path):
    """The vector at 1.0 s is that of the sound from 0.5 s to 1.5 s; without centring, from 1.0 s to 2.0 s."""
    network, sound = load_model(model), noise(3.0)
    for center, start in ((True, 0.5), (False, 1.0)):
        embedder = load_embedder(model, EmbedderOptions(precision="fp32"))
        vectors, times = get_audio_embedding(sound, RATE, embedder, hop_seconds=0.5, center=center)
        second = torch.from_numpy(sound[int(start * RATE) :][:RATE])[None]
        assert times[2] == 1.0
        assert np.array_equal(vectors[2], make_fast_l3net(network).embed_audio(second)[0].numpy())


def test_batches_change_nothing(model: Path):
    network, sound = load_model(model), noise(2.0)
    one, many = (get_audio_embedding(sound, RATE, network, batch_size=size)[0] for size in (1, 16))
    assert np.allclose(one, many, rtol=0.02, atol=0.02 * np.abs(many).max())


def test_other_rates_are_resampled(model: Path):
    """A tone of 440 Hz is the same tone at 16 and at 48 kHz; a tone of 2 kHz is not."""
    network = load_model(model)

    def vectors(rate: int, pitch: float) -> np.ndarray:
        time = np.arange(2 * rate) / rate
        sound = (0.3 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)
        return get_audio_embedding(sound, rate, network, hop_seconds=0.5)[0][2]

    same, other = vectors(16_000, 440.0), vectors(16_000, 2000.0)
    assert np.linalg.norm(same - vectors(48_000, 440.0)) < 0.3 * np.linalg.norm(same - other)


def test_one_bad_file_loses_no_other(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a", "b", "d"):
        soundfile.write(tmp_path / f"{name}.wav", noise(1.0), RATE)
    (tmp_path / "c.wav").write_bytes(b"RIFF" + bytes(40))
    with pytest.raises(DataError, match=r"1 of 4 files could not be embedded .*c\.wav"):
        embed_audio([tmp_path], model, workers=1)
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["a.npz", "b.npz", "d.npz"]
    assert "3 written, 0 existed already, 1 could not be read" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*"))


def test_what_exists_is_kept_unless_told_otherwise(tmp_path: Path, model: Path):
    """In OpenL3 a last file that was there already made it lose those before it."""
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", noise(1.0), RATE)
    (tmp_path / "b.npz").write_bytes(b"kept")
    counts = embed_audio([tmp_path / "a.wav", tmp_path / "b.wav"], model, workers=1)
    assert (counts.written, counts.skipped) == (1, 1)
    assert (tmp_path / "a.npz").is_file()
    assert (tmp_path / "b.npz").read_bytes() == b"kept"
    assert embed_audio([tmp_path], model, workers=1, overwrite=True).written == 2
    assert (tmp_path / "b.npz").read_bytes() != b"kept"


def test_processes_write_what_one_writes(tmp_path: Path, model: Path):
    (tmp_path / "in" / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        soundfile.write(tmp_path / "in" / f"{name}.wav", noise(1.2, len(name)), RATE)
    for workers in (1, 2):
        embed_audio([tmp_path / "in"], model, tmp_path / str(workers), hop_seconds=0.4, workers=workers)
    for name in ("a.npz", "inner/b.npz"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_that_differ_in_their_ending_have_results_of_their_own(tmp_path: Path, model: Path):
    """`a.wav.flac` would have the name that `a.wav` takes."""
    for number, name in enumerate(("a.wav", "a.flac", "a.wav.flac", "b.wav")):
        soundfile.write(tmp_path / name, noise(1.0, number), RATE)
    out = tmp_path / "out"
    options = {"out": out, "hop_seconds": 0.5, "workers": 1}
    assert embed_audio([tmp_path], model, **options).written == 4
    assert names_in(out) == ["a.flac.npz", "a.wav.flac.npz", "a.wav.npz", "b.npz"]
    for name in ("a.wav", "a.flac", "a.wav.flac"):
        embed_audio([tmp_path / name], model, tmp_path / f"of {name}", hop_seconds=0.5, workers=1)
        (alone,) = (tmp_path / f"of {name}").iterdir()
        assert np.array_equal(np.load(out / f"{name}.npz")["embedding"], np.load(alone)["embedding"])
    assert embed_audio([tmp_path], model, **options).skipped == 4
    (tmp_path / "a.flac").unlink()
    (tmp_path / "a.wav.flac").unlink()
    assert embed_audio([tmp_path], model, **options).skipped == 2


def test_a_result_of_a_file_of_another_name_is_not_overwritten(tmp_path: Path, model: Path):
    for number, name in enumerate(("a.wav", "a.flac")):
        soundfile.write(tmp_path / name, noise(1.0, number), RATE)
    embed_audio([tmp_path / "a.wav"], model, workers=1)
    first = (tmp_path / "a.npz").read_bytes()
    for overwrite in (False, True):
        assert embed_audio([tmp_path / "a.flac"], model, workers=1, overwrite=overwrite).written == 1
    assert (tmp_path / "a.npz").read_bytes() == first
    assert names_in(tmp_path) == ["a.flac", "a.flac.npz", "a.npz", "a.wav"]
    assert embed_audio([tmp_path], model, workers=1).skipped == 2


def test_two_files_for_one_result_are_refused(tmp_path: Path, model: Path):
    for name in ("x/a.wav", "y/a.wav"):
        (tmp_path / name).parent.mkdir()
        soundfile.write(tmp_path / name, noise(1.0), RATE)
    with pytest.raises(DataError, match=r"would both be written to .*a\.wav\.npz"):
        embed_audio([tmp_path / "x" / "a.wav", tmp_path / "y" / "a.wav"], model, tmp_path / "out")
    with pytest.raises(DataError, match=r"no .*\.wav.* file in"):
        (tmp_path / "empty").mkdir()
        embed_audio([tmp_path / "empty"], model)


def test_wrong_numbers_are_refused(tmp_path: Path, model: Path):
    with pytest.raises(ValueError, match=r"hop_seconds \(0\.0\) must be positive"):
        embed_audio([tmp_path], model, hop_seconds=0.0)
    with pytest.raises(ValueError, match=r"audio of shape \(0,\)"):
        get_audio_embedding(np.zeros(0, np.float32), RATE, load_model(model))
    with pytest.raises(ValueError, match="no images"):
        get_image_embedding([], load_model(model))


def test_a_picture_is_embedded_upright_and_by_itself(tmp_path: Path, model: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    turned = Image.fromarray(np.rot90(pixels).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    counts = embed_image([tmp_path], model, workers=1)
    assert counts.windows == 2
    upright, again = (np.load(tmp_path / name)["embedding"] for name in ("upright.npz", "turned.npz"))
    assert upright.shape[0] == 1
    assert np.array_equal(upright, again)
    network = load_model(model)
    many = get_image_embedding([read_image(tmp_path / "upright.png"), pixels[:40, :40]], network)
    assert np.allclose(many[:1], upright, rtol=0.02, atol=0.02 * np.abs(upright).max())


def test_a_video_gives_frames_and_sound_on_its_clock(tmp_path: Path, model: Path):
    """Frames of a rate that is no multiple of what is asked for; OpenL3's own times drift with int(29.97)."""
    moments = tuple(k * 1001 / 30_000 for k in range(90))
    path = write_video(tmp_path / "clip.mp4", picture_seconds=moments, sound=tone(3.0, RATE))
    embed_video([path], model, tmp_path / "out", frames_per_second=2.0, hop_seconds=0.5, workers=1)
    picture, sound = (np.load(tmp_path / "out" / f"clip_{kind}.npz") for kind in ("image", "audio"))
    assert np.allclose(picture["timestamps"], np.arange(len(picture["timestamps"])) * 0.5, atol=0.04)
    assert len(picture["timestamps"]) == len(picture["embedding"]) == 7  # 3.003 s: 0, 0.5, ... 3
    assert np.allclose(sound["timestamps"], np.arange(len(sound["timestamps"])) * 0.5)
    silent, loud = sound["embedding"][0], sound["embedding"][3:5]
    assert np.linalg.norm(loud[0] - loud[1]) < 0.5 * np.linalg.norm(loud[0] - silent)


def test_frames_of_a_video_without_sound_are_kept(tmp_path: Path, model: Path):
    path = write_video(tmp_path / "mute.mp4")
    with pytest.raises(DataError, match=r"mute\.mp4: no audio stream"):
        embed_video([path], model, workers=1)
    assert (tmp_path / "mute_image.npz").is_file()
    assert not (tmp_path / "mute_audio.npz").exists()
