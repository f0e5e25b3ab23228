"""Exported AVE-Nets and dual encoders, run by ONNX Runtime and OpenVINO, against the models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comodal.models.ave_net.ave_net import AVENet, AVENetConfig
from comodal.models.checkpoint import save_model
from comodal.models.dual_encoder.dual_encoder import DualEncoder, DualEncoderConfig
from comodal.models.l3net.spectrogram import SMALL_SPECTROGRAM_CONFIG
from comodal.models.vilbert.vilbert_config import StreamConfig
from comodal.runtimes.export import export, open_network
from comodal.runtimes.export_formats import FORMAT_SUFFIXES, Format

TEXT, REGION_DIM, VOCABULARY, POSITIONS = StreamConfig(16, 2, 2, 32), 6, 50, 24
AVE = {"image_size": 32, "spectrogram": SMALL_SPECTROGRAM_CONFIG, "width": 2, "embedding_dim": 8}
DUAL = (TEXT, VOCABULARY, POSITIONS, 0, 2, REGION_DIM, 8)
MODELS = {
    "AVE-Net": lambda: AVENet(AVENetConfig(**AVE)),
    "AVOL-Net": lambda: AVENet(AVENetConfig(**AVE, comparison="localization")),
    "dual encoder": lambda: DualEncoder(DualEncoderConfig(*DUAL)),
    "dual encoder with attention": lambda: DualEncoder(DualEncoderConfig(*DUAL, image_pooling="attention")),
}


def make_calls(model: nn.Module, batch: int) -> dict[str, tuple[dict[str, Tensor], tuple[Tensor, ...]]]:
    """The inputs of each network, and what the model makes of them."""
    if isinstance(model, AVENet):
        image = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
        audio = 0.1 * torch.randn(batch, round(model.config.audio_seconds * model.config.sample_rate))
        return {
            "image": ({"image": image}, (model.compute_image_features(image),)),
            "audio": ({"audio": audio}, (model.compute_audio_features(audio),)),
            "ave_net": ({"image": image, "audio": audio}, tuple(model(image, audio))),
        }
    assert isinstance(model, DualEncoder)
    token_ids, token_mask = torch.randint(0, VOCABULARY, (batch, 9)), torch.arange(9) < torch.full((batch, 1), 7)
    features, region_mask = torch.randn(batch, 5, REGION_DIM), torch.arange(5) < torch.full((batch, 1), 4)
    expected = model(token_ids, token_mask, features, region_mask)
    regions = {"region_features": features}
    if model.config.image_pooling == "attention":
        regions["region_mask"] = region_mask
    return {
        "text": ({"token_ids": token_ids, "token_mask": token_mask}, (expected.text,)),
        "image": (regions, (expected.image,)),
    }


SLOW_NAMES = {"AVE-Net", "AVOL-Net", "dual encoder with attention"}
CASES = [
    pytest.param(name, format_, marks=[pytest.mark.slow] if format_ == "openvino" or name in SLOW_NAMES else [])
    for name in MODELS
    for format_ in ("onnx", "openvino")
]


@pytest.mark.parametrize(("name", "format_"), CASES)
def test_another_runtime_gives_what_the_model_gives_for_any_batch(name: str, tmp_path: Path, format_: Format):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    save_model(model, tmp_path / "model", {})
    exported = export(tmp_path / "model", format_, out=tmp_path / "out")
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    assert described["class"] == type(model).__name__
    for batch in (1, 3):
        with torch.inference_mode():
            calls = make_calls(model, batch)
        assert calls.keys() == exported.networks.keys()
        for network, (inputs, expected) in calls.items():
            run = open_network(tmp_path / "out" / f"{network}{FORMAT_SUFFIXES[format_]}", format_)
            results = run({key: value.numpy() for key, value in inputs.items()})
            for ours, theirs in zip(expected, results, strict=True):
                assert np.allclose(ours.numpy(), theirs, atol=1e-5 * max(1.0, float(ours.abs().max())))
