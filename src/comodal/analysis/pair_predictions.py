"""Predictions of audio-visual correspondence on held-out pairs, compared with the ground truth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comodal.data.batch import AudioVisualBatch
from comodal.data.shards.clip_dataset import ClipPairDataset
from comodal.data.shards.pair_sampler import PairSampler
from comodal.data.shards.shard_reader import ShardReader
from comodal.hardware import choose_inference_batch_size, get_module_device
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.l3net.l3net import L3Net
from comodal.tasks.evaluation.metrics import check_finite_scores

PAIR_BATCH_SIZE = 8
CORRECT_COLOR, INCORRECT_COLOR = "#15803d", "#b91c1c"


@dataclass(frozen=True)
class PairPredictions:
    """Pairs, and the model's probability that each is a match."""

    pairs: AudioVisualBatch
    probabilities: Float[np.ndarray, " batch"]

    @property
    def accuracy(self) -> float:
        """The fraction of correct predictions, with a threshold of one half."""
        check_finite_scores(self.probabilities, "probabilities of the pairs")
        return float(((self.probabilities > 0.5) == self.pairs.is_match.numpy()).mean())


def predict_pairs(model: L3Net | AVENet, shards: Path, pairs: int, seed: int) -> PairPredictions:
    """The first pairs of a seed from the clips of a split, as in validation: center crops, no augmentation."""
    reader, config = ShardReader(shards), model.config
    sampler = PairSampler(reader, seed, config.audio_seconds)
    clips = ClipPairDataset(reader, sampler, config.image_size, config.sample_rate, None)
    batch = clips.batch([(0, index) for index in range(pairs)])
    with torch.inference_mode():
        device = get_module_device(model)
        size = max(PAIR_BATCH_SIZE, choose_inference_batch_size(device))
        parts = zip(batch.image.split(size), batch.audio.split(size), strict=True)
        logits = torch.cat([model(image.to(device), audio.to(device)).logits.float().cpu() for image, audio in parts])
    return PairPredictions(batch, logits.float().softmax(-1)[:, 1].numpy())


def draw_pair_predictions(model: L3Net | AVENet, predictions: PairPredictions, columns: int = 8) -> Figure:
    """Images above spectrograms, titled by the probability of correspondence: green where the prediction is correct."""
    num_shown = min(columns, len(predictions.probabilities))
    figure = Figure(figsize=(1.6 * num_shown, 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, num_shown, squeeze=False)
    with torch.inference_mode():
        spectrograms = (
            model.spectrogram(predictions.pairs.audio[:num_shown].to(get_module_device(model)))[:, 0].cpu().numpy()
        )
    for index in range(num_shown):
        probability, truth = float(predictions.probabilities[index]), bool(predictions.pairs.is_match[index])
        above, below = grid[:, index]
        above.imshow(predictions.pairs.image[index].permute(1, 2, 0).numpy())
        below.imshow(spectrograms[index], origin="lower", aspect="auto", cmap="magma")
        color = CORRECT_COLOR if (probability > 0.5) == truth else INCORRECT_COLOR
        above.set_title(f"{probability:.2f}", fontsize=8, color=color, fontweight="bold")
        below.set_title("truth: match" if truth else "truth: mismatch", fontsize=8, color="#444444")
        for axes in (above, below):
            axes.set_xticks([])
            axes.set_yticks([])
    return figure


def draw_probability_histogram(predictions: PairPredictions) -> Figure:
    """Histograms of the probability of correspondence over matched and mismatched pairs."""
    figure = Figure(figsize=(6.0, 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    truth = predictions.pairs.is_match.numpy()
    groups = [predictions.probabilities[truth], predictions.probabilities[~truth]]
    axes.hist(groups, bins=20, range=(0.0, 1.0), label=["match", "mismatch"], color=["#3b6ea5", "#d9a441"])
    axes.set_xlabel("probability of correspondence")
    axes.set_ylabel("pairs")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
