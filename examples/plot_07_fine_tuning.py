"""
Fine-tuning on labeled images
=============================

A recipe trains a whole network for classes, from a pretrained model. This example starts from a small L3-Net with
random weights, and fine-tunes it on synthetic images of ten classes. With your own model, give its folder as ``model``.
"""

# %%
# Images in class folders, and a model
# ------------------------------------
import tempfile
from pathlib import Path

import torch

import comodal
from comodal.models.l3net.l3net import make_small_l3net_config

folder = Path(tempfile.mkdtemp())
comodal.synthesize(folder / "world", videos=0, audio=0, scenes=0, images=100, side=64, workers=1)
torch.manual_seed(0)
comodal.L3Net(make_small_l3net_config(width=4, image_size=32)).save_pretrained(folder / "pretrained")

# %%
# Training
# --------
# The same as ``comodal train image_classes --model pretrained/ --data images/``. A fifth of the training images is held
# out and scored in the log.
import json

parameters = {
    "model": folder / "pretrained",
    "data": folder / "world" / "images",
    "epochs": 12.0,
    "batch_size": 20,
    "learning_rate": 3e-3,
    "head_learning_rate": 3e-3,
    "validation_fraction": 0.2,
    "workers": 0,
}
comodal.train("image_classes", parameters, folder / "run", log_every=4, validate_every=8)

# %%
import matplotlib.pyplot as plt

log = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for split in ("train", "validation"):
    lines = [line for line in log if line["split"] == split]
    axes.plot([line["step"] for line in lines], [line["accuracy"] for line in lines], label=split)
axes.axhline(0.1, color="gray", linestyle=":", label="chance level")
axes.set(xlabel="step", ylabel="accuracy", ylim=(0, 1))
axes.legend()
plt.show()
