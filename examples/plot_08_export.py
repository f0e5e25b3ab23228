"""
Export to ONNX
==============

``comodal.export`` writes the networks of a model as files for another runtime, and compares each of them with the model
at once. This example runs an exported network with ONNX Runtime alone. It needs the extra ``onnx``.
"""

# %%
# A model to export
# -----------------
import tempfile
from pathlib import Path

import torch

import comodal
from comodal.models.l3net.l3net import make_small_l3net_config

torch.manual_seed(0)
run = Path(tempfile.mkdtemp()) / "run"
model = comodal.L3Net(make_small_l3net_config(width=4)).eval()
model.save_pretrained(run)

# %%
# The exported network
# --------------------
# An L3-Net has the networks ``image``, ``audio`` and ``l3net``. Each network is compared with the model.
exported = comodal.export(run, "onnx", run.parent / "onnx", only=["audio"])
print("largest relative difference", exported.networks["audio"].difference)

# %%
# In ONNX Runtime
# ---------------
# The batch may have any size. The spectrogram is part of the network: its input is a waveform.
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(run.parent / "onnx" / "audio.onnx")
audio = np.random.default_rng(0).normal(0, 0.1, (3, model.config.sample_rate)).astype(np.float32)
(embedding,) = session.run(None, {session.get_inputs()[0].name: audio})
with torch.inference_mode():
    expected = model.embed_audio(torch.from_numpy(audio)).numpy()
print(embedding.shape, "largest difference", np.abs(embedding - expected).max())

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(4, 4), layout="constrained")
axes.plot(expected.ravel(), embedding.ravel(), ".", markersize=3)
axes.set(xlabel="PyTorch", ylabel="ONNX Runtime", title="embeddings of three waveforms")
plt.show()
