"""comodal.openl3 in the place of OpenL3: its own outputs, its windows and names, and none of its mistakes by name."""

import importlib.util
import inspect
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import comodal.openl3 as openl3
import comodal.openl3.cli as openl3_cli
from comodal.errors import CheckpointError, DataError
from comodal.inference.embed_files import embed_audio, embed_image, embed_video
from comodal.inference.embedder import Embedder, EmbedderOptions, load_embedder
from comodal.inference.openl3_files import load_openl3
from comodal.inference.openl3_images import prepare_squares
from comodal.media.resample_kaiser import KaiserStream, resample_kaiser
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from comodal.openl3.models import EmbeddingModel
from tests.models.l3net.test_l3net_parity import reference
from tests.support import openl3_layouts as layouts
from tests.support.synthetic_media import tone, write_video

RATE = 48_000
spec = importlib.util.spec_from_file_location("make_inputs", layouts.FIXTURES / "make_inputs.py")
make_inputs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_inputs)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory):
    """The fixture's weights under two of the published names."""
    path = tmp_path_factory.mktemp("openl3")
    shutil.copy(layouts.published("audio"), path / "openl3_audio_mel128_music-v0_4_0.h5.gz")
    shutil.copy(layouts.published("image"), path / "openl3_image_mel128_music-v0_4_0.h5.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMODAL_OPENL3", str(path))
        patch.setenv("XDG_CACHE_HOME", str(path / "cache"))
        yield path


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """To 1e-5 of the largest value."""
    return ours.shape == theirs.shape and bool(np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max())


def noise(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).normal(size=round(seconds * rate))


class Narrow:
    """A network a thirtieth as wide, with OpenL3's shapes otherwise, to test what surrounds it quickly."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        found = load_openl3(layouts.published("audio"), representation="mel128")
        config = L3NetConfig(**{**vars(found.model.config), "width": 2})
        about = {"representation": "mel128", "frontend": "kapre014", "towers": ["audio", "image"], "files": ["narrow"]}
        network = L3Net(config)
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        save_model(network, folder, {"openl3": about})
        self.folder = folder

    def model(self, modality: str, **choice: object) -> EmbeddingModel:
        embedder = load_embedder(self.folder, EmbedderOptions(**{"precision": "fp32", **choice}))
        return EmbeddingModel(embedder, modality, "kapre" if modality == "audio" else "")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return Narrow(tmp_path_factory.mktemp("narrow"))


# What OpenL3 0.4.2 itself computed


@pytest.mark.parametrize(
    ("hop", "center"), [(0.5, False), (0.3, True), pytest.param(0.1, True, marks=pytest.mark.slow)]
)
def test_lists_rates_hops_and_centring_are_openl3s(hop: float, center: bool):
    """Three sounds of other rates, channels and lengths; made by OpenL3 with its librosa front end."""
    theirs = reference("api")
    sounds = [sound / 32_768 for sound in make_inputs.audio_api()]
    options = {"input_repr": "mel128", "embedding_size": 512, "frontend": "librosa"}
    with openl3.settings(as_openl3="0.4.2"), warnings.catch_warnings():
        warnings.simplefilter("ignore", openl3.OpenL3Warning)
        vectors, times = openl3.get_audio_embedding(
            sounds, [16_000, 48_000, 48_000], center=center, hop_size=hop, **options
        )
    for number in range(3):
        name = f"hop{hop}_center{int(center)}_{number}"
        assert close(vectors[number], theirs[f"{name}_emb"])
        assert np.allclose(times[number], theirs[f"{name}_ts"])


def test_resampling_is_resampys():
    """kaiser_best of resampy 0.2.2: windows of half a second's hop, every 97th sample."""
    windows = openl3.preprocess_audio(make_inputs.audio_api()[0] / 32_768, 16_000, hop_size=0.5)
    assert close(windows[:, 0, ::97], reference("api")["resampled_16k_windows_sub"])


def test_resampling_block_by_block_is_that_of_the_whole():
    for rate in (8000, 11_025, 44_100, 96_000, 192_000):
        sound, stream = noise(0.5, rate), KaiserStream(rate, RATE)
        pieces = [stream.push(block) for block in np.array_split(sound, 7)] + [stream.finish()]
        assert np.allclose(np.concatenate(pieces), resample_kaiser(sound, rate, RATE), atol=1e-12)
        assert sum(map(len, pieces)) == int(len(sound) * (RATE / rate))


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 96_000, 192_000])
def test_a_tone_stays_a_tone_at_any_rate(rate: int):
    time = np.arange(rate) / rate
    wanted = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    ours = resample_kaiser(np.sin(2 * np.pi * 1000 * time), rate, RATE)
    assert np.abs(ours - wanted)[2000:-2000].max() < 2e-4


def test_pictures_are_openl3s():
    """The third is 300 x 400: scaled as scikit-image does, and in OpenL3's wrong range."""
    theirs = reference("image_embeddings")
    first, second, large = make_inputs.images()
    pair = np.stack([first, second])
    vectors, times = openl3.get_image_embedding(pair, 25, input_repr="mel128")
    assert close(vectors, theirs["img224_8192"])
    assert np.allclose(times, [0.0, 0.04])
    with openl3.settings(as_openl3="0.4.2"):
        (odd, even) = openl3.get_image_embedding([large, first], input_repr="mel128", embedding_size=512)
    assert close(odd, theirs["img300x400_512"])
    assert close(even, theirs["img224_512"][:1])


def test_spectrograms_of_windows_have_openl3s_shapes():
    """The linear network hears 197 frames and the others 199, as they were trained (OpenL3's issue 77)."""
    sound = noise(1.0)
    for representation, shape in (("linear", (257, 197)), ("mel128", (128, 199)), ("mel256", (256, 199))):
        made = openl3.preprocess_audio(sound, RATE, input_repr=representation, center=False)
        assert made.shape == (1, *shape, 1)


def test_preprocessing_and_predict_are_get_audio_embedding():
    """Both front ends; a librosa model takes decibels, a kapre model sound."""
    sound = noise(1.0)
    for frontend, representation in (("kapre", None), ("librosa", "mel128")):
        model = openl3.models.load_audio_embedding_model("mel128", "music", 512, frontend=frontend)
        x = openl3.preprocess_audio(sound, RATE, hop_size=1.0, input_repr=representation, center=False)
        wanted, _ = openl3.get_audio_embedding(
            sound, RATE, model=model, hop_size=1.0, input_repr="mel128", frontend=frontend, center=False
        )
        assert x.shape[1:] == model.input_shape[1:]
        assert model.output_shape == (None, 512)
        assert np.allclose(model.predict(x, verbose=0), wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_front_end_is_the_one_of_training_unless_told_otherwise():
    """The fixture's click, of which kapre 0.1.4 and 0.3 make different spectrograms."""
    click, theirs = make_inputs.audio_48k()[3] / 32_768, reference("audio_embeddings")

    def vector(**options: object) -> np.ndarray:
        options = {"input_repr": "mel128", "embedding_size": 512, "center": False, **options}
        return openl3.get_audio_embedding(click, RATE, **options)[0][0]

    assert close(vector(), theirs["mel128_512_kapre014"][3])
    assert close(vector(frontend="kapre03"), theirs["mel128_512_kapre036"][3])
    with openl3.settings(as_openl3="0.4.2"):
        assert close(vector(), theirs["mel128_512_kapre036"][3])


# The same names


SIGNATURES = {  # openl3/core.py, models.py and cli.py of OpenL3 0.4.2, in their order; no default: required
    "core.get_audio_embedding": "audio, sr, model=None, input_repr=None, content_type='music', embedding_size=6144, "
    "center=True, hop_size=0.1, batch_size=32, frontend='kapre', verbose=True",
    "core.get_image_embedding": "image, frame_rate=None, model=None, input_repr='mel256', content_type='music', "
    "embedding_size=8192, batch_size=32, verbose=True",
    "core.get_output_path": "filepath, suffix, output_dir=None",
    "core.preprocess_audio": "audio, sr, hop_size=0.1, input_repr=None, center=True",  # without librosa's **kw
    "core.process_audio_file": "filepath, output_dir=None, suffix=None, model=None, input_repr=None, "
    "content_type='music', embedding_size=6144, center=True, hop_size=0.1, batch_size=32, overwrite=False, "
    "frontend='kapre', verbose=True",
    "core.process_image_file": "filepath, output_dir=None, suffix=None, model=None, input_repr='mel256', "
    "content_type='music', embedding_size=8192, batch_size=32, overwrite=False, verbose=True",
    "core.process_video_file": "filepath, output_dir=None, suffix=None, audio_model=None, image_model=None, "
    "input_repr=None, content_type='music', audio_embedding_size=6144, audio_center=True, audio_hop_size=0.1, "
    "image_embedding_size=8192, audio_batch_size=32, image_batch_size=32, audio_frontend='kapre', overwrite=False, "
    "verbose=True",
    "models.get_audio_embedding_model_path": "input_repr, content_type",
    "models.get_image_embedding_model_path": "input_repr, content_type",
    "models.load_audio_embedding_model": "input_repr, content_type, embedding_size, frontend='kapre'",
    "models.load_audio_embedding_model_from_path": "model_path, input_repr, embedding_size, frontend='kapre'",
    "models.load_image_embedding_model": "input_repr, content_type, embedding_size",
    "models.load_image_embedding_model_from_path": "model_path, embedding_size",
    "cli.get_file_list": "input_list",
    "cli.main": "",
    "cli.parse_args": "args",
    "cli.positive_float": "value",
    "cli.positive_int": "value",
    "cli.run": "modality, inputs, output_dir=None, suffix=None, input_repr='mel256', content_type='music', "
    "audio_embedding_size=6144, audio_center=True, audio_hop_size=0.1, audio_batch_size=32, "
    "image_embedding_size=8192, image_batch_size=32, audio_frontend='kapre', overwrite=False, verbose=False",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_function_has_the_parameters_of_openl3(name: str):
    module, _, function = name.partition(".")
    found = getattr(importlib.import_module(f"comodal.openl3.{module}"), function)
    bare = [one.replace(annotation=one.empty) for one in inspect.signature(found).parameters.values()]
    assert str(inspect.Signature(bare)) == f"({SIGNATURES[name]})"


def test_names_are_where_openl3_has_them():
    """`import openl3` has the functions of arrays and files; user code also imports from four modules."""
    for name in SIGNATURES:
        if name.startswith("core."):
            function = name.removeprefix("core.")
            assert getattr(openl3, function) is getattr(importlib.import_module("comodal.openl3.core"), function)
    assert importlib.import_module("comodal.openl3.core").TARGET_SR == 48_000
    assert importlib.import_module("comodal.openl3.models") is openl3.models
    assert importlib.import_module("comodal.openl3.openl3_exceptions").OpenL3Error is openl3.OpenL3Error
    assert importlib.import_module("comodal.openl3.openl3_warnings").OpenL3Warning is openl3.OpenL3Warning
    assert openl3.models.VALID_AUDIO_EMBEDDING_SIZES == (6144, 512)
    assert openl3.models.VALID_IMAGE_EMBEDDING_SIZES == (8192, 512)


def test_names_of_results():
    assert openl3.get_output_path("/a/b.c.wav", "x.npz") == "/a/b.c_x.npz"
    assert openl3.get_output_path("/a/b.wav", ".npz", "/out") == "/out/b.npz"


def test_an_import_is_all_that_changes(narrow: Narrow, tmp_path: Path):
    """A file gives what the arrays give, and what `comodal embed` writes."""
    soundfile.write(tmp_path / "s.wav", noise(1.3, 44_100), 44_100, subtype="FLOAT")
    openl3.process_audio_file(str(tmp_path / "s.wav"), model=narrow.model("audio"), verbose=False, hop_size=0.4)
    sound, rate = soundfile.read(tmp_path / "s.wav")
    vectors, times = openl3.get_audio_embedding(sound, rate, model=narrow.model("audio"), hop_size=0.4)
    embed_audio([tmp_path / "s.wav"], narrow.folder, tmp_path / "out", hop_seconds=0.4, precision="fp32", workers=1)
    with np.load(tmp_path / "s.npz") as found, np.load(tmp_path / "out" / "s.npz") as same:
        assert np.array_equal(found["embedding"], vectors)
        assert np.array_equal(found["timestamps"], times)
        assert sorted(found) == sorted(same) == ["about", "embedding", "silent", "timestamps"]
        assert all(np.array_equal(found[name], same[name]) for name in found)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"audio": np.zeros(0)}, "not empty"),
        ({"audio": np.zeros((2, 2, 2))}, "1 or 2 dimensions"),
        ({"audio": "sound"}, "must be type"),
        ({"sr": -1}, "Invalid sample rate"),
        ({"sr": [1, 2]}, "1 audio arrays and 2 sample rates"),
        ({"hop_size": 0}, "Invalid hop size"),
        ({"center": "yes"}, "Invalid center"),
        ({"embedding_size": 42}, "Invalid embedding size"),
        ({"input_repr": "mel64"}, "Invalid input representation"),
        ({"content_type": "speech"}, "Invalid content type"),
        ({"frontend": "torch"}, "Invalid frontend"),
        ({"frontend": "librosa", "input_repr": None}, "specify input_repr"),
        ({"model": "keras"}, "Invalid model"),
        ({"content_type": "env"}, r"no weights of openl3_audio_mel128_env in .*: get https://"),
    ],
)
def test_what_openl3_refuses_is_refused(arguments: dict, sentence: str):
    with pytest.raises(openl3.OpenL3Error, match=sentence):
        openl3.get_audio_embedding(**{"audio": np.ones(RATE), "sr": RATE, "input_repr": "mel128", **arguments})


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (np.zeros((224, 224)), "3 or 4 dimensions"),
        (np.zeros((300, 300, 4)), "Need 3 channel"),
        (np.zeros((100, 300, 3)), "at least 224x224"),
        (np.full((300, 300, 3), 1000.0), "image values from 1000 to 1000"),
    ],
)
def test_pictures_that_openl3_refuses_are_refused(picture: np.ndarray, sentence: str, narrow: Narrow):
    with pytest.raises(openl3.OpenL3Error, match=sentence):
        openl3.get_image_embedding(picture, model=narrow.model("image"))


# The command `openl3`


def test_the_command_has_openl3s_flags():
    """The long and the short forms of openl3/cli.py give the same."""
    long = "video a.mp4 --output-dir o --suffix s --input-repr linear --content-type env --audio-embedding-size 512 "
    long += "--no-audio-centering --audio-hop-size 0.5 --audio-batch-size 4 --image-embedding-size 512 "
    long += "--image-batch-size 8 --audio-frontend librosa --overwrite --quiet"
    short = "video a.mp4 -o o -x s -i linear -c env -as 512 -n -t 0.5 -ab 4 -is 512 -ib 8 -af librosa -ow -q"
    found = vars(openl3_cli.parse_args(long.split()))
    assert found == vars(openl3_cli.parse_args(short.split()))
    assert found == {
        "modality": "video", "inputs": ["a.mp4"], "output_dir": "o", "suffix": "s", "input_repr": "linear",
        "content_type": "env", "audio_embedding_size": 512, "no_audio_centering": True, "audio_hop_size": 0.5,
        "audio_batch_size": 4, "image_embedding_size": 512, "image_batch_size": 8, "audio_frontend": "librosa",
        "overwrite": True, "quiet": True,
    }  # fmt: skip


def test_the_command_writes_what_the_functions_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "s.wav", noise(1.0), RATE, subtype="FLOAT")
    flags = ["-i", "mel128", "-as", "512", "-n", "-t", "1", "-q", "-x", "own", "-o", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["openl3", "audio", str(tmp_path / "in"), *flags])
    openl3_cli.main()
    sound, rate = soundfile.read(tmp_path / "in" / "s.wav")
    vectors, _ = openl3.get_audio_embedding(
        sound, rate, input_repr="mel128", embedding_size=512, center=False, hop_size=1.0, verbose=False
    )
    with np.load(tmp_path / "s_own.npz") as found:
        assert np.array_equal(found["embedding"], vectors)


def test_a_mistake_in_the_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(sys, "argv", ["openl3", "audio", str(tmp_path / "none.wav")])
    with pytest.raises(SystemExit, match="1"):
        openl3_cli.main()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "none.wav" in lines[0]


# None of OpenL3's mistakes


def test_bug_resuming_loses_nothing(narrow: Narrow, tmp_path: Path):
    """OpenL3: if the last file is done already, the files before it are never written."""
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", noise(1.0), RATE)
        Image.fromarray(np.full((240, 240, 3), 90, np.uint8)).save(tmp_path / f"{name}.png")
    for kind, process in (("wav", openl3.process_audio_file), ("png", openl3.process_image_file)):
        out, files = tmp_path / kind, [str(tmp_path / f"{name}.{kind}") for name in "abc"]
        out.mkdir()
        (out / "c.npz").write_bytes(b"done")
        model = narrow.model("audio" if kind == "wav" else "image")
        process(files, output_dir=str(out), model=model, verbose=False)
        assert sorted(path.name for path in out.iterdir()) == ["a.npz", "b.npz", "c.npz"]
        assert (out / "c.npz").read_bytes() == b"done"


def test_bug_range_of_pictures():
    """OpenL3 gives [-1, 1] for 224 x 224 alone; here 240 x 240 is its middle, and floats and integers mean the same."""
    large = np.random.default_rng(0).integers(0, 256, (1, 240, 240, 3), dtype=np.uint8)
    wanted = large[:, 8:232, 8:232] * (2 / 255) - 1
    kinds = [large, large / 255, large / np.float32(127.5) - 1, large.astype(np.float64), large.astype(np.uint16) * 257]
    for pictures in kinds:
        assert np.allclose(prepare_squares(pictures), wanted, atol=1e-5)
    assert np.allclose(prepare_squares(large[:, 8:232, 8:232]), wanted, atol=1e-6)
    assert np.abs(prepare_squares(np.full((1, 500, 300, 3), 255, np.uint8)) - 1).max() < 1e-6
    assert np.abs(prepare_squares(np.zeros((1, 500, 300, 3))) + 1).max() < 1e-6


@pytest.mark.parametrize("rate", [8000, 16_000, 96_000, 192_000])
def test_bug_batches_are_of_the_size_asked_for_at_any_rate(narrow: Narrow, rate: int, monkeypatch: pytest.MonkeyPatch):
    """OpenL3 estimates 0.11 times the windows at 16 kHz and 4 times at 96 kHz, and stacks those of all sounds."""
    model, sizes = narrow.model("audio"), []
    plain = Embedder.embed_audio
    monkeypatch.setattr(
        Embedder, "embed_audio", lambda self, windows: (sizes.append(len(windows)), plain(self, windows))[1]
    )
    vectors, _ = openl3.get_audio_embedding([noise(1.2, rate)] * 2, rate, model=model, batch_size=4)
    assert [len(v) for v in vectors] == [8, 8]  # ceil((0.5 + 1.2 - 1) / 0.1) + 1
    assert max(sizes) <= 4


def test_bug_pictures_keep_to_the_batch_size(narrow: Narrow, monkeypatch: pytest.MonkeyPatch):
    sizes, plain = [], Embedder.embed_pixels
    monkeypatch.setattr(Embedder, "embed_pixels", lambda self, x: (sizes.append(len(x)), plain(self, x))[1])
    pictures = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    many = openl3.get_image_embedding(pictures, model=narrow.model("image"), batch_size=2)
    assert sizes == [2, 2, 1]
    one = openl3.get_image_embedding(pictures, model=narrow.model("image"), batch_size=5)
    assert np.allclose(many, one, atol=1e-6)


def test_bug_video_is_not_held_squashed_or_slowed(narrow: Narrow, tmp_path: Path):
    """29.97 frames a second are not 29, a wide picture keeps its shape, and frames come one by one."""
    moments = tuple(k * 1001 / 30_000 for k in range(30))
    path = write_video(tmp_path / "v.mp4", picture_seconds=moments, sound=tone(1.0, RATE), size=(480, 256))
    sound, sees = narrow.model("audio"), narrow.model("image")
    openl3.process_video_file(
        str(path), suffix="x", audio_model=sound, image_model=sees, audio_hop_size=0.5, verbose=False
    )
    with np.load(tmp_path / "v_image_x.npz") as found:
        assert np.allclose(found["timestamps"], moments, atol=1e-3)
        first = found["embedding"][0]
    with np.load(tmp_path / "v_audio_x.npz") as found:
        assert np.allclose(found["timestamps"], np.arange(len(found["timestamps"])) * 0.5)
    embed_video([path], narrow.folder, tmp_path / "own", as_openl3="0.4.2", workers=1)
    with np.load(tmp_path / "own" / "v_image.npz") as found:
        assert sorted(found) == ["embedding", "timestamps"]
        assert np.allclose(found["timestamps"], np.arange(30) / 29)
        assert np.linalg.norm(found["embedding"][0] - first) > 1e-3 * np.linalg.norm(first)


def test_bug_frame_rates_are_each_lists_own(narrow: Narrow):
    """OpenL3 takes the last rate of the list for all."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    _, times = openl3.get_image_embedding([pictures, pictures], [10, 20], model=narrow.model("image"))
    assert [float(t[1]) for t in times] == [0.1, 0.05]


def test_bug_models_are_read_once():
    first, second = (openl3.models.load_audio_embedding_model("mel128", "music", 512) for _ in range(2))
    assert first.embedder is second.embedder


def test_bug_silence_is_not_the_loudest_noise(narrow: Narrow, tmp_path: Path):
    """All zeros are 0 dB everywhere under their own maximum; here the vectors are zero, and the file says so."""
    sound = np.concatenate([noise(1.0), np.zeros(3 * RATE)])
    vectors, _ = openl3.get_audio_embedding(sound, RATE, model=narrow.model("audio"), hop_size=1.0, center=False)
    assert [bool(row.any()) for row in vectors] == [True, False, False, False]
    soundfile.write(tmp_path / "s.wav", sound, RATE)
    embed_audio([tmp_path / "s.wav"], narrow.folder, hop_seconds=1.0, center=False, workers=1)
    embed_audio(
        [tmp_path / "s.wav"],
        narrow.folder,
        tmp_path / "own",
        hop_seconds=1.0,
        center=False,
        workers=1,
        as_openl3="0.4.2",
    )
    with np.load(tmp_path / "s.npz") as found, np.load(tmp_path / "own" / "s.npz") as own:
        assert found["silent"].tolist() == [False, True, True, True]
        assert sorted(own) == ["embedding", "timestamps"]
        assert own["embedding"][1].any()
    with pytest.warns(openl3.OpenL3Warning, match="all zeros"):
        openl3.get_audio_embedding(np.zeros(RATE), RATE, model=narrow.model("audio"))


def test_bug_every_format_is_read(narrow: Narrow, tmp_path: Path):
    """mp3, 24 bits, 5.1, 8 and 192 kHz, a tenth of a second, pictures in grey and with transparency."""
    files = {
        "a.mp3": (noise(1.0, 44_100), 44_100, None),
        "b.wav": (noise(0.1, 8000), 8000, "PCM_24"),
        "c.flac": (np.stack([noise(0.5, 192_000, k) for k in range(6)], 1), 192_000, "PCM_24"),
    }
    for name, (sound, rate, subtype) in files.items():
        soundfile.write(tmp_path / name, sound, rate, subtype=subtype)
    openl3.process_audio_file([str(tmp_path / name) for name in files], model=narrow.model("audio"), verbose=False)
    assert [len(np.load(tmp_path / f"{name}.npz")["embedding"]) for name in "abc"] == [6, 1, 1]
    Image.fromarray(np.full((300, 250), 80, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((300, 250, 4), 255, np.uint8)).save(tmp_path / "alpha.png")
    pictures = [str(tmp_path / "grey.png"), str(tmp_path / "alpha.png")]
    openl3.process_image_file(pictures, model=narrow.model("image"), verbose=False)
    assert np.load(tmp_path / "grey.npz")["embedding"].shape == (1, 4 * 4 * 16)


def test_a_bad_file_costs_no_other_and_is_named(narrow: Narrow, tmp_path: Path):
    soundfile.write(tmp_path / "good.wav", noise(1.0), RATE)
    (tmp_path / "bad.wav").write_bytes(b"RIFF" + bytes(60))
    files = [str(tmp_path / name) for name in ("missing.wav", "bad.wav", "good.wav")]
    with pytest.raises(openl3.OpenL3Error, match=r"missing\.wav.*and 1 more"):
        openl3.process_audio_file(files, model=narrow.model("audio"), verbose=False)
    assert (tmp_path / "good.npz").is_file()


# The command line's own


def test_embedding_refuses_a_network_that_is_not_there(narrow: Narrow, folder: Path, tmp_path: Path):
    Image.fromarray(np.full((230, 230, 3), 90, np.uint8)).save(tmp_path / "p.png")
    with pytest.raises(CheckpointError, match=r"mel128_music.*holds the network of the audio, not of the image"):
        embed_image([tmp_path / "p.png"], folder / "openl3_audio_mel128_music-v0_4_0.h5.gz")
    with pytest.raises(ValueError, match="size is 100; this network has 16 or 256"):
        embed_image([tmp_path / "p.png"], narrow.folder, size=100)
    small = L3NetConfig(width=1, image_size=24)
    save_model(L3Net(small), tmp_path / "own", {})
    with pytest.raises(ValueError, match="as_openl3 and frontend apply to OpenL3 weights"):
        embed_image([tmp_path / "p.png"], tmp_path / "own", as_openl3="0.4.2")
    Image.fromarray(np.full((100, 230, 3), 90, np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="OpenL3 requires images of at least 224 x 224"):
        embed_image([tmp_path / "small.png"], narrow.folder, as_openl3="0.4.2", workers=1)


@pytest.mark.slow
def test_an_hour_of_sound_takes_less_than_a_gigabyte(folder: Path, tmp_path: Path):
    """The whole network in a process of its own, 44.1 kHz in stereo; 36,000 vectors of 6144 would be 885 MB."""
    path, block = tmp_path / "hour.wav", 0.1 * np.random.default_rng(0).normal(size=(44_100, 2))
    with soundfile.SoundFile(path, "w", 44_100, 2, "PCM_16") as file:
        for _ in range(3600):
            file.write(block)
    weights = folder / "openl3_audio_mel128_music-v0_4_0.h5.gz"
    code = (
        "import resource\nfrom pathlib import Path\nimport numpy as np, torch\ntorch.set_num_threads(1)\n"
        "from comodal.inference import embed_files as embed\nfrom comodal.inference.embedder import Embedder\n"
        "plain, calls = Embedder.embed_audio, []\n"
        "def sound(self, windows):\n"  # every 200th batch through the network, the others with its last answer
        "    if len(calls) % 200 == 0 or len(windows) != len(calls[-1][0]):\n"
        "        calls.append(plain(self, windows))\n"
        "    else:\n        calls.append(calls[-1])\n"
        "    return calls[-1]\n"
        "Embedder.embed_audio = sound\n"
        f"embed.embed_audio([Path({str(path)!r})], Path({str(weights)!r}), Path({str(tmp_path)!r}), workers=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 1000
    with np.load(tmp_path / "hour.npz") as found:
        assert found["timestamps"].shape == (35_996,)  # ceil((0.5 + 3600 - 1) / 0.1) + 1
