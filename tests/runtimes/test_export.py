"""Exported networks, run by their runtimes directly, against the models that they were made from."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
from PIL import Image
from torch.nn import functional as F

from comodal.cli.program import main
from comodal.errors import CheckpointError, DataError
from comodal.inference import embedder
from comodal.inference.embed_files import embed_audio, embed_image, embed_video
from comodal.inference.embedder import EmbedderOptions, resolve_engine
from comodal.models.checkpoint import load_model, save_model
from comodal.models.l3net.l3net import (
    L3EMBEDDING_L3NET_CONFIG,
    PAPER_L3NET_CONFIG,
    L3Net,
    make_openl3_config,
    make_small_l3net_config,
)
from comodal.models.l3net.spectrogram import Spectrogram
from comodal.models.vilbert import single_stream, vilbert
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.task_model import TaskModelConfig as TaskConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig
from comodal.runtimes import export as export_module
from comodal.runtimes import export_formats, exported_engines
from comodal.runtimes.export import export, open_network
from comodal.runtimes.export_formats import FORMAT_SUFFIXES, Format, import_openvino, open_onnx, open_openvino
from comodal.runtimes.export_networks import pool_grid_cells
from comodal.runtimes.export_spectrogram import PortableSpectrogram
from tests.support.synthetic_media import write_video

NETWORK = dataclasses.replace(make_small_l3net_config(2, 32), spectrogram=PAPER_L3NET_CONFIG.spectrogram)
TINY = vilbert.ViLBERTConfig(
    vocabulary=50, positions=24, text=StreamConfig(16, 2, 2, 32), vision=StreamConfig(12, 1, 2, 24),
    joint_dim=8, joint_heads=2,
    co_attention_layers=((0, 1),), region_feature_dim=6, region_targets=5, task_tokens=3, initializer_range=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tones in noise and four pictures of colours."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for number in range(4):
        tone = np.sin(2 * np.pi * 200 * 2**number * np.arange(80_000) / 48_000)
        soundfile.write(folder / f"s{number}.wav", 0.2 * tone + 0.02 * rng.normal(size=80_000), 48_000)
        pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 50)).save(folder / f"p{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Path:
    """A model with its exports for ONNX and OpenVINO, in 8 bits too."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_model(L3Net(NETWORK), folder / "model", {})
    for format_ in ("onnx", "openvino"):
        exported = export(folder, format_, int8=files)
        assert max(exported.networks[name].difference for name in ("image", "audio", "l3net")) < 1e-5
        losses = [exported.networks[name].quantization for name in ("image", "audio")]
        assert all(loss is not None and loss.mean_cosine > 0.98 for loss in losses)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        PAPER_L3NET_CONFIG,
        L3EMBEDDING_L3NET_CONFIG,
        make_openl3_config("linear"),
        make_openl3_config("mel256"),
        make_small_l3net_config(),
    ],
)
def test_the_portable_transform_is_as_exact_as_the_fft(config):
    rng = np.random.default_rng(0)
    sound = 0.1 * rng.normal(size=(2, 6_000)) + np.sin(np.arange(6_000))
    portable, plain = PortableSpectrogram(config.spectrogram), Spectrogram(config.spectrogram)
    frames = torch.from_numpy(sound).float().unfold(-1, config.spectrogram.window_samples, 242) * plain.window
    exact = np.abs(np.fft.rfft(frames.double().numpy(), n=config.spectrogram.n_fft)) ** 2
    for ours in (portable, plain):
        assert np.abs(ours.compute_power(frames).mT.numpy() - exact).max() < 1e-6 * exact.max()


def test_a_transform_of_a_prime_length():
    config = dataclasses.replace(PAPER_L3NET_CONFIG.spectrogram, n_fft=13, window_samples=11, hop_samples=3)
    frames = torch.randn(1, 4, 11)
    exact = np.abs(np.fft.rfft(frames.double().numpy(), n=13)) ** 2
    assert np.allclose(PortableSpectrogram(config).compute_power(frames).mT.numpy(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 4), (4, 4), (32, 24), (7, 5), (2, 1)])
def test_cells_are_those_of_pytorch_s_adaptive_pooling(shape: tuple[int, int]):
    feature_map, grid = torch.randn(2, 3, *shape), (min(4, shape[0]), min(3, shape[1]))
    expected = F.adaptive_max_pool2d(feature_map, grid).permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(pool_grid_cells(feature_map, (4, 3)), expected)


def test_onnx_runtime_gives_what_the_model_gives_for_any_batch(run: Path):
    model, folder = load_model(run), run / "model" / "export" / "onnx"
    sessions = {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("image", "audio", "l3net")
    }
    described = json.loads((folder / "export.json").read_text())["networks"]["l3net"]
    assert described["inputs"] == {
        "image": {"type": "uint8", "shape": ["batch", 3, 32, 32]},
        "audio": {"type": "float32", "shape": ["batch", 48_000]},
    }
    for batch in (1, 3):
        image = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
        sound = 0.1 * torch.randn(batch, 48_000)
        with torch.inference_mode():
            expected = [model.embed_image(image), model.embed_audio(sound), *model(image, sound)]
        given = {"image": image.numpy(), "audio": sound.numpy()}
        results = [sessions[name].run(None, {name: given[name]})[0] for name in ("image", "audio")]
        for ours, theirs in zip(expected, results + sessions["l3net"].run(None, given), strict=True):
            assert np.allclose(ours.numpy(), theirs, atol=1e-5 * float(ours.abs().max()))
    assert [axis.shape[0] for axis in sessions["l3net"].get_inputs()] == ["batch", "batch"]
    assert [output.name for output in sessions["l3net"].get_outputs()] == described["outputs"]


@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="OpenVINO finds bf16, which oneDNN may not use")
def test_in_bfloat16_a_tone_stays_a_tone(run: Path):
    """OpenVINO's own bfloat16 rounds the waveform to 8 bits and makes noise of what is between the tones."""
    path = run / "model" / "export" / "openvino" / "audio.xml"
    sound = (0.5 * torch.sin(2 * torch.pi * 440 / 48_000 * torch.arange(48_000)))[None]
    with torch.inference_mode():
        expected = load_model(run).embed_audio(sound)[0]
    openvino = import_openvino(path)
    ours = open_openvino(path, "bf16")({"audio": sound.numpy()})[0][0]
    cosine = F.cosine_similarity(torch.from_numpy(ours), expected, 0)
    assert cosine > 0.999
    is_restricted = "ONEDNN_MAX_CPU_ISA" in os.environ  # which OpenVINO's list of capabilities does not see
    if not is_restricted and "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        everywhere = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
        theirs = torch.from_numpy(everywhere([sound.numpy()])[0][0].copy())
        assert 1 - F.cosine_similarity(theirs, expected, 0) > 3 * (1 - cosine)


@pytest.mark.parametrize(
    ("options", "apart"),
    [
        ({"engine": "onnx"}, 1e-4),
        ({"engine": "openvino", "precision": "fp32"}, 1e-4),
        ({"engine": "openvino"}, 0.05),
        ({"engine": "onnx", "precision": "int8"}, 0.3),
        ({"engine": "openvino", "precision": "int8"}, 0.3),
        ({"engine": "onnx", "size": 16}, 1e-4),
    ],
    ids=str,
)
def test_embedding_with_another_engine(run: Path, files: Path, tmp_path: Path, options: dict, apart: float):
    plain = {"precision": "fp32", "size": options.get("size")}
    embed_audio([files / "s1.wav"], run, tmp_path / "torch", hop_seconds=0.5, workers=1, **plain)
    embed_image([files / "p1.png"], run, tmp_path / "torch", workers=1, **plain)
    embed_audio([files / "s1.wav"], run, tmp_path / "other", hop_seconds=0.5, workers=1, **options)
    embed_image([files / "p1.png"], run, tmp_path / "other", workers=1, **options)
    for name in ("s1.npz", "p1.npz"):
        ours, theirs = (np.load(tmp_path / folder / name)["embedding"] for folder in ("torch", "other"))
        assert ours.shape == theirs.shape
        assert np.linalg.norm(ours - theirs) < apart * np.linalg.norm(ours)


@pytest.mark.parametrize(
    ("fused", "precision", "installed", "expected"),
    [
        (True, "auto", True, "torch"),
        (False, "fp32", True, "openvino"),
        (False, "fp32", False, "torch"),
        (True, "int8", True, "openvino"),
    ],
)
def test_auto_takes_an_exported_engine_only_where_it_is_faster_or_asked_for(
    run: Path, monkeypatch: pytest.MonkeyPatch, fused: bool, precision: str, installed: bool, expected: str
):
    monkeypatch.setattr(embedder, "can_fuse_convolution", lambda _: fused)
    monkeypatch.setattr(exported_engines, "find_spec", lambda _: object() if installed else None)
    choice = EmbedderOptions(engine="auto", precision=precision)
    model = L3Net.from_pretrained(run)
    assert resolve_engine(run, model, choice) == expected
    torch.nn.init.zeros_(model.fc1.weight)  # no longer the weights that were exported
    assert resolve_engine(run, model, choice) == "torch"


def test_the_frames_and_the_sound_of_a_video_with_another_engine(run: Path, tmp_path: Path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(96_000, dtype=np.float32)
    clip = write_video(tmp_path / "clip.mp4", sound=noise)
    embed_video([clip], run, tmp_path / "torch", frames_per_second=2.0, hop_seconds=0.5, workers=1, precision="fp32")
    embed_video([clip], run, tmp_path / "onnx", frames_per_second=2.0, hop_seconds=0.5, workers=1, engine="onnx")
    for name in ("clip_image.npz", "clip_audio.npz"):
        ours, theirs = (np.load(tmp_path / folder / name)["embedding"] for folder in ("torch", "onnx"))
        assert np.allclose(ours, theirs, atol=1e-4 * np.abs(ours).max())


def test_pictures_for_openl3_s_networks_are_the_same_bytes_again(tmp_path: Path, files: Path):
    about = {"representation": "linear", "frontend": "kapre014", "towers": ["image", "audio"], "files": ["x"]}
    config = dataclasses.replace(make_openl3_config("linear"), width=1)
    save_model(L3Net(config), tmp_path, {"openl3": about})
    export(tmp_path, "onnx", only=["image"])
    embed_image([files / "p1.png"], tmp_path, tmp_path / "torch", workers=1, precision="fp32")
    embed_image([files / "p1.png"], tmp_path, tmp_path / "onnx", workers=1, engine="onnx")
    ours, theirs = (np.load(tmp_path / folder / "p1.npz")["embedding"] for folder in ("torch", "onnx"))
    assert np.allclose(ours, theirs, atol=1e-5 * np.abs(ours).max())


def pairs(batch: int, words: int, regions: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    return (
        torch.randint(0, 50, (batch, words), generator=generator),
        torch.zeros(batch, words, dtype=torch.int64),
        torch.arange(words).expand(batch, -1) < words - 1,
        torch.randn(batch, regions, 6, generator=generator),
        torch.rand(batch, regions, 5, generator=generator),
        torch.arange(regions).expand(batch, -1) < regions - 1,
        torch.randint(0, 3, (batch,), generator=generator),
    )


NAMES = ("token_ids", "token_types", "token_mask", "region_features", "spatials", "region_mask", "task_ids")


@pytest.mark.parametrize("format_", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_vilbert_takes_any_number_of_pairs_words_and_regions(tmp_path: Path, format_: Format):
    torch.manual_seed(0)
    model = ViLBERT(TINY).eval()
    save_model(model, tmp_path, {})
    assert export(tmp_path, format_, out=tmp_path / "out").networks["vilbert"].difference < 1e-5
    run = open_network(tmp_path / "out" / f"vilbert{FORMAT_SUFFIXES[format_]}", format_)
    for sizes in ((1, 3, 2), (5, 24, 11)):
        inputs = pairs(*sizes)
        with torch.inference_mode():
            output = model(*inputs)
            expected = [*output, model.alignment_head(output.pooled_text, output.pooled_vision)]
        results = run({name: tensor.numpy() for name, tensor in zip(NAMES, inputs, strict=True)})
        for ours, theirs in zip(expected, results, strict=True):
            assert np.allclose(ours.numpy(), theirs, atol=1e-5)


def test_a_single_stream_reads_words_and_visual_tokens(tmp_path: Path):
    torch.manual_seed(0)
    config = single_stream.SingleStreamConfig(
        vocabulary=50, positions=24, text=StreamConfig(16, 2, 2, 32), num_visual_tokens=9, region_targets=6
    )
    model = SingleStream(config).eval()
    save_model(model, tmp_path, {})
    assert export(tmp_path, "onnx", out=tmp_path / "out").networks["vilbert"].difference < 1e-5
    words, segments, words_attended, _, locations, regions_attended, _ = pairs(3, 8, 5)
    inputs = (words, segments, words_attended, torch.arange(15).view(3, 5) % 9, locations, regions_attended)
    with torch.inference_mode():
        output = model(*inputs)
        expected = model.alignment_head(output.pooled_text, output.pooled_vision)
    run = open_onnx(tmp_path / "out" / "vilbert.onnx")
    results = run({name: tensor.numpy() for name, tensor in zip(NAMES[:6], inputs, strict=True)})
    assert np.allclose(results[-1], expected.numpy(), atol=1e-5)


HEADS = (
    Head("answers", "answers", 4, 8),
    Head("score", "linear", 1),
    Head("both", "pairs", 2, 8),
    Head("where", "regions", 1),
    Head("which", "tokens", 1),
)


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a head of each kind."""
    folder = tmp_path_factory.mktemp("answering")
    torch.manual_seed(0)
    save_model(TaskModel(TaskConfig(TINY, HEADS)), folder, {})
    return folder


def assert_heads_are_the_model_s(answering: Path, out: Path, format_: Format, names: set[str]) -> None:
    model, inputs = load_model(answering), pairs(6, 9, 4)
    for head, shape in zip(HEADS, [(6, 4), (6, 1), (3, 2), (6, 4), (6, 10)], strict=True):  # the task is a 10th word
        if head.name in names:
            with torch.inference_mode():
                expected = model(head.name, *inputs[:6], torch.arange(6), inputs[6])
            run = open_network(out / f"{head.name}{FORMAT_SUFFIXES[format_]}", format_)
            (result,) = run({name: tensor.numpy() for name, tensor in zip(NAMES, inputs, strict=True)})
            assert result.shape == shape
            assert np.allclose(result, expected.numpy(), atol=1e-5)


@pytest.mark.slow
def test_only_some_heads_of_a_task_model(answering: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["export", str(answering), "--to", "torch", "--out", str(tmp_path), "--only"]
    assert main([*words, "both"]) == 0
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["both.pt2", "export.json"]
    assert_heads_are_the_model_s(answering, tmp_path, "torch", {"both"})
    assert main([*words, "scores"]) == 1
    told = "unknown networks: scores; this model has answers, score, both, where, which"
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "openvino", "torch"])
def test_every_head_in_every_format(answering: Path, tmp_path: Path, format_: Format):
    names = {head.name for head in HEADS}
    assert set(export(answering, format_, out=tmp_path).networks) == set(names)
    assert_heads_are_the_model_s(answering, tmp_path, format_, names)


def test_what_differs_from_the_model_is_not_kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export_module, "MAX_RELATIVE_DIFFERENCE", -1.0)
    with pytest.raises(CheckpointError, match=r"image\.pt2 differs from the model by"):
        export(run, "torch", out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_a_missing_package_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export_formats, "find_spec", lambda name: None if name == "onnxscript" else sys)
    with pytest.raises(CheckpointError, match=r"onnx needs onnxscript: pip install 'comodal\[onnx\]'"):
        export(run, "onnx", out=tmp_path)


def test_an_export_of_other_weights_or_a_damaged_one_is_refused(run: Path, files: Path, tmp_path: Path):
    torch.manual_seed(1)
    save_model(L3Net(NETWORK), tmp_path / "model", {})
    sound, folder = [files / "s1.wav"], tmp_path / "model" / "export"
    with pytest.raises(CheckpointError, match="no export here; run `comodal export"):
        embed_audio(sound, tmp_path, tmp_path, engine="onnx")
    shutil.copytree(run / "model" / "export", folder)
    with pytest.raises(CheckpointError, match="exported from other weights"):
        embed_audio(sound, tmp_path / "model", tmp_path, engine="onnx")
    shutil.copytree(run / "model", tmp_path / "copy")
    folder = tmp_path / "copy" / "export"
    (folder / "onnx" / "audio.onnx").write_bytes(b"not this")
    with pytest.raises(CheckpointError, match=r"audio\.onnx: damaged \(checksum\)"):
        embed_audio(sound, tmp_path / "copy", tmp_path, engine="onnx")
    (folder / "openvino" / "audio.bin").unlink()
    with pytest.raises(CheckpointError, match=r"audio\.bin: damaged \(checksum\)"):
        embed_audio(sound, tmp_path / "copy", tmp_path, engine="openvino", precision="fp32")
    (folder / "openvino" / "export.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"export\.json: damaged"):
        embed_audio(sound, tmp_path / "copy", tmp_path, engine="openvino")


@pytest.mark.parametrize("opener", [open_onnx, lambda path: open_openvino(path, "fp32")])
def test_a_file_of_another_kind_is_refused_in_a_sentence(opener, tmp_path: Path):
    (tmp_path / "audio.xml").write_text("hello")
    with pytest.raises(CheckpointError, match=r"audio\.xml: damaged"):
        opener(tmp_path / "audio.xml")


def test_options_that_cannot_go_together(run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for words, sentence in (
        (["export", str(tmp_path), "--to", "onnx"], "no model found"),
        (["export", str(run), "--to", "torch", "--int8", str(files)], "--int8 is for the embedders of an L3-Net"),
        (
            ["embed", "audio", str(files), "--model", str(run), "--engine", "onnx", "--precision", "bf16"],
            "no bf16",
        ),
        (
            ["embed", "audio", str(files), "--model", str(run), "--engine", "torch", "--precision", "int8"],
            "int8 is for exported embedders",
        ),
        (["embed", "audio", str(files), "--model", str(run), "--engine", "onnx", "--device", "cuda"], "PyTorch only"),
    ):
        assert main(words) == 1
        assert sentence in capsys.readouterr().err
    with pytest.raises(DataError, match="at least two of a kind"):
        export(run, "onnx", int8=tmp_path)


def test_openvino_reports_nothing_over_the_network(tmp_path: Path):
    import_openvino(tmp_path)
    assert sys.modules["openvino_telemetry"] is None
    assert "openvino.tools.ovc.telemetry_stub" in sys.modules
