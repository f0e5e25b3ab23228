"""
Training on your own data
=========================

Images and audio of the same classes are paired, written as shards, and an L3-Net is trained on them. The files are
synthetic. For videos use ``comodal.prepare_videos``; the rest stays the same.
"""

# %%
# A folder of images and a folder of audio
# ----------------------------------------
# Files are in one folder per class. Here a class is a color and a tone.
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

rng = np.random.default_rng(0)
folder = Path(tempfile.mkdtemp())
CLASSES = {"low": ((60, 90, 230), 300.0), "middle": ((70, 200, 80), 1000.0), "high": ((230, 70, 60), 3500.0)}
RATE = 48_000
time = np.arange(RATE) / RATE
for name, (color, tone_hz) in CLASSES.items():
    for kind in ("images", "audio"):
        (folder / kind / name).mkdir(parents=True)
    for number in range(24):
        pixels = rng.normal(color, 40, (48, 48, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
        audio = 0.2 * np.sin(2 * np.pi * tone_hz * time + rng.uniform(0, 6)) + rng.normal(0, 0.01, RATE)
        soundfile.write(folder / "audio" / name / f"{number}.wav", audio, RATE)

# %%
# Pairs, as shards
# ----------------
# A fifth of the files is held out for validation, a tenth for testing.
import comodal

shards = folder / "shards"
comodal.prepare_pairs(
    folder / "images", folder / "audio", shards, validation_fraction=0.2, seconds=1.0, short_side=48, workers=1
)
print(sorted(path.name for path in shards.iterdir() if path.is_dir()))

# %%
# Training
# --------
# ``train`` takes the name of a recipe and its parameters, the same as the options of ``comodal train l3net``. The
# objective ``all_pairs`` learns in fewer steps than the paper's. The log has one JSON object per line.
import json

parameters = {
    "data": shards,
    "variant": "small",
    "width": 4,
    "image_size": 32,
    "objective": "all_pairs",
    "steps": 80,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "validation_pairs": 32,
    "workers": 0,
}
comodal.train("l3net", parameters, folder / "run", log_every=2)
log = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]

# %%
import matplotlib.pyplot as plt

validation = [line for line in log if line["split"] == "validation"]
print(f"correspondence on held-out pairs: {validation[-1]['accuracy']:.2f}, chance level 0.50")
training = [line for line in log if line["split"] == "train"]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot([line["step"] for line in training], [line["loss"] for line in training])
axes.set(xlabel="step", ylabel="loss")
plt.show()

# %%
# The trained model
# -----------------
pipeline = comodal.load(folder / "run")
vectors = pipeline.embed_image([folder / "images" / name / "0.png" for name in CLASSES])
print(type(pipeline).__name__, vectors.shape)
