"""Wrong arguments of the Python API end in one sentence. In a process without the checks of shapes of the test runs."""

import json
import subprocess
import sys

import pytest

CODE = r"""
import json, sys
import numpy as np, torch
from pathlib import Path
import comodal
from comodal import hardware
from comodal.inference.vision_language import VisionLanguagePipeline
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.vilbert.transformer import to_bool_mask

folder, out = Path(sys.argv[1]) / "model", Path(sys.argv[1]) / "run"
model = L3Net(make_small_l3net_config(2, 32)).eval()
save_model(model, folder, {})
pipeline = comodal.load(folder, device="cpu", precision="fp32")
pcm = (9000 * np.sin(np.arange(60_000) / 9)).astype(np.int16)
captions = VisionLanguagePipeline(None, None, None, {}, None)
image, tokens = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(3, 5, dtype=torch.int64)
ones = torch.ones(3, 5, dtype=torch.bool)
pixels = np.zeros((32, 32, 3), np.uint8)
cases = {
    "int64": lambda: pipeline.embed_audio(pcm.astype("int64"), 48_000),
    "small int32": lambda: pipeline.embed_audio(pcm.astype("int32"), 48_000),
    "several": lambda: pipeline.embed_audio([pcm, pcm], 48_000),
    "images": lambda: pipeline.localize([pixels], pcm, 48_000),
    "precision": lambda: comodal.load(folder, precision="fp16"),
    "device": lambda: comodal.load(folder, device="gpu"),
    "rate text": lambda: pipeline.embed_audio(pcm, "48000"),
    "rate bool": lambda: pipeline.embed_audio(pcm, True),
    "hop text": lambda: pipeline.embed_audio(pcm, 48_000, hop_seconds="0.5"),
    "hop nan": lambda: pipeline.embed_audio(pcm, 48_000, hop_seconds=float("nan")),
    "match hop": lambda: pipeline.match(pixels, pcm, 48_000, hop_seconds="0.5"),
    "text": lambda: captions.score(None, [3]),
    "mask text": lambda: captions.fill_mask(None, 3),
    "steps": lambda: comodal.train("l3net", {"data": "x", "steps": "abc"}, out),
    "unknown": lambda: comodal.train("l3net", {"dta": "x"}, out),
    "mask list": lambda: to_bool_mask(ones.tolist(), tokens),
    "mask array": lambda: to_bool_mask(ones.numpy(), tokens),
    "mask batch": lambda: to_bool_mask(ones[:1], tokens),
    "mask length": lambda: to_bool_mask(ones[:, :4], tokens),
    "audio 1-D": lambda: model.embed_audio(torch.zeros(48_000)),
    "audio 3-D": lambda: model.embed_audio(torch.zeros(2, 1, 48_000)),
    "audio float64": lambda: model.embed_audio(torch.zeros(2, 48_000, dtype=torch.float64)),
    "HWC": lambda: model.embed_image(image.permute(0, 2, 3, 1)),
}
told = {}
for name, case in cases.items():
    try:
        case()
        told[name] = "accepted"
    except Exception as error:
        told[name] = f"{type(error).__name__}: {error}"
hardware.cpu_has_native_bf16 = lambda: False
comodal.load(folder, device="cpu", precision="bf16")
print(json.dumps(told))
"""
PCM = "convert samples of 16 bits to int16, or all samples to floating point numbers from -1 to 1"
ONE_AUDIO = (
    "pass one path, one array (samples,) or (samples, channels), or one tensor (samples,) or (channels, samples)"
)
EXPECTED = {
    "int64": f"TypeError: audio of int64: {PCM}",
    "small int32": f"ValueError: audio of int32 whose samples all fit in 16 bits: {PCM}",
    "several": f"TypeError: got list for audio; {ONE_AUDIO}, with its sample rate; "
    "call this once for each waveform or file",
    "images": "TypeError: got list for an image; pass one path, PIL image, array (height, width, 3) or tensor (3, "
    "height, width) of bytes",
    "precision": "ValueError: there is no precision 'fp16'; pass auto, fp32, bf16",
    "device": "ValueError: device gpu: there is none of this name; pass auto, cpu, cuda, mps, or cuda:1",
    "rate text": "ValueError: sample_rate is a number from 100 to 10,000,000, got '48000'",
    "rate bool": "ValueError: sample_rate is a number from 100 to 10,000,000, got True",
    "hop text": "ValueError: hop_seconds is a number from 0 to 1,000,000, got '0.5'",
    "hop nan": "ValueError: hop_seconds is a number from 0 to 1,000,000, got nan",
    "match hop": "ValueError: hop_seconds is a number from 0.01 to 3,600, got '0.5'",
    "text": "TypeError: got int for a text; pass it as str",
    "mask text": "TypeError: got int for a text; pass it as str",
    "steps": "RecipeError: l3net: steps is a number, got 'abc'",
    "unknown": "RecipeError: l3net: there is no parameter 'dta'; did you mean 'data'?",
    "mask list": "TypeError: an attention mask of type list: pass a tensor (batch, tokens)",
    "mask array": "TypeError: an attention mask of type ndarray: pass a tensor (batch, tokens)",
    "mask batch": "ValueError: an attention mask of shape (1, 5) for a batch of (3, 5)",
    "mask length": "ValueError: an attention mask of shape (3, 4) for a batch of (3, 5)",
    "audio 1-D": "ValueError: audio of shape (48000,): pass a batch (batch, samples) with one channel",
    "audio 3-D": "ValueError: audio of shape (2, 1, 48000): pass a batch (batch, samples) with one channel",
    "audio float64": "TypeError: audio of torch.float64: pass torch.float32, the type of this model",
    "HWC": "ValueError: images of shape (2, 32, 32, 3): pass a batch (batch, 3, height, width)",
}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", CODE, str(tmp_path_factory.mktemp("wrong"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_each_wrong_argument_ends_in_one_sentence(process: subprocess.CompletedProcess) -> None:
    assert json.loads(process.stdout.splitlines()[-1]) == EXPECTED


def test_slow_bf16_warns_once(process: subprocess.CompletedProcess) -> None:
    assert process.stderr.count("bf16 is not native") == 1
