"""A task that takes the picture: which of four colours its region has, asked in words; and a ViLBERT to learn it."""

from pathlib import Path

import numpy as np
import torch

from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig, ViLBERTConfig

COLOURS = ("red", "green", "blue", "grey")
QUESTION = "what colour is it"
DIM = 8
SIDE = 100


def config(vocabulary: int) -> ViLBERTConfig:
    return ViLBERTConfig(
        vocabulary=vocabulary,
        positions=40,
        text=StreamConfig(32, 2, 2, 48, dropout=0.0, attention_dropout=0.0),
        vision=StreamConfig(32, 1, 2, 48, dropout=0.0, attention_dropout=0.0),
        joint_dim=32,
        joint_heads=2,
        co_attention_layers=((0, 1),),
        region_feature_dim=DIM,
        region_targets=3,
        initializer_range=0.1,
    )


def colour_of(image: int) -> int:
    return image * 7 % 4


def write_colours(folder: Path, images: int = 40) -> RegionStore:
    """Two regions an image: one of its colour at the left, and a plain one at the right."""
    rng = np.random.default_rng(0)
    with RegionWriter(folder, DIM, about={"detector": "by hand"}) as writer:
        for image in range(images):
            features = rng.normal(0, 0.1, (2, DIM)).astype(np.float32)
            features[0, colour_of(image)] += 2
            boxes = np.array([[0, 0, 40, SIDE], [50, 0, SIDE, SIDE]], np.float32)
            writer.add(str(image), features, boxes, SIDE, SIDE)
    return RegionStore(folder)


def write_pretrained(folder: Path, texts: list[str]) -> Path:
    """A run folder with a ViLBERT of chance and the words of some texts."""
    torch.manual_seed(7)  # the same in every run, and not the one that a control begins from
    words = WordPieceTokenizer.from_texts(texts)
    save_model(ViLBERT(config(words.size)), folder / "model", {"recipe": "by hand"})
    words.save(folder / "model")
    return folder
