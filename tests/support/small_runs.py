"""Pictures, a grid over an L3-Net of chance, and runs of chance with or without heads, for tests of inference."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from comodal.data.regions.region_store import RegionStore
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.regions.extract import extract_regions
from tests.support.small_tasks import config as small_config

TEXT = "what is on the grass ? a red dog stands left of it"
ANSWERS = ["yes", "no", "two"]


def write_pictures(folder: Path) -> Path:
    """Pictures, an L3-Net of chance, and a store of the cells of a grid over it."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a", (60, 40)), ("b", (40, 70))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / "images" / f"{name}.png")
    save_model(L3Net(make_small_l3net_config(4)), folder / "network", {})
    extract_regions(folder / "images", folder / "store", str(folder / "network"), grid=2)
    return folder


def run_of(world: Path, folder: Path, *heads: Head) -> Path:
    """A run of chance with the words, answers and regions that training writes beside the weights."""
    store, words = RegionStore(world / "store"), WordPieceTokenizer.from_texts([TEXT])

    config = replace(small_config(words.size), region_feature_dim=store.dim)
    save_model(TaskModel(TaskModelConfig(config, heads)) if heads else ViLBERT(config), folder, {})
    words.save(folder)
    (folder / "regions.json").write_bytes(store.encode_provenance())
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    return folder
