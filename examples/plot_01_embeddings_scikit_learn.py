"""
Embeddings as features in scikit-learn
======================================

A network of comodal turns audio into vectors, and scikit-learn classifies them. The audio is synthetic: ten kinds of
sound, from bells to sirens. The network is a small L3-Net with random weights, so that the example needs no download;
with your own weights, use ``comodal.load("runs/l3net")``.
"""

# %%
# Synthetic audio files
# ---------------------
# ``synthesize`` writes a folder in the layout of ESC-50: ``audio/`` and a table with the class and the fold of
# each file.
import csv
import tempfile
from pathlib import Path

import comodal

world = Path(tempfile.mkdtemp()) / "world"
comodal.synthesize(world, videos=0, images=0, scenes=0, audio=100, audio_seconds=1.0, workers=1)
with (world / "esc50" / "meta" / "esc50.csv").open(newline="") as table:
    rows = list(csv.DictReader(table))
print(f"{len(rows)} files, {len({row['category'] for row in rows})} classes")

# %%
# Embeddings
# ----------
# ``embed_audio`` takes a path, an array or a tensor. It returns one vector per window, and the time of each window.
# The mean over the windows is the vector of a file.
import numpy as np
import torch

from comodal.models.l3net.l3net import make_small_l3net_config

torch.manual_seed(0)
pipeline = comodal.AudioVisualPipeline.from_model(comodal.L3Net(make_small_l3net_config(width=8)))


def embed(path: Path) -> np.ndarray:
    """The mean embedding of an audio file."""
    vectors, _ = pipeline.embed_audio(path, hop_seconds=0.5)
    return vectors.mean(0)


features = np.stack([embed(world / "esc50" / "audio" / row["filename"]) for row in rows])
labels = np.array([row["category"] for row in rows])
folds = np.array([int(row["fold"]) for row in rows])
print(features.shape)

# %%
# A classifier on the folds of the data set
# -----------------------------------------
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
predicted = cross_val_predict(classifier, features, labels, cv=PredefinedSplit(folds))
accuracy = (predicted == labels).mean()
print(f"accuracy {accuracy:.2f}, chance level {1 / len(set(labels)):.2f}")

# %%
# Which classes are confused
# --------------------------
import matplotlib.pyplot as plt
from sklearn.metrics import ConfusionMatrixDisplay

figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
ConfusionMatrixDisplay.from_predictions(labels, predicted, ax=axes, xticks_rotation="vertical", colorbar=False)
axes.set_title(f"An untrained L3-Net: accuracy {accuracy:.2f}")
plt.show()
