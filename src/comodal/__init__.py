"""comodal: self-supervised representations from video with audio, and from images with text.

Load a trained model, and use it on files, PIL images, arrays and tensors::

    import comodal

    l3net = comodal.load("runs/l3net")  # a run folder, OpenL3's weights, or OWNER/NAME on the Hugging Face hub
    embeddings, timestamps = l3net.embed_audio("recording.wav")
    vilbert = comodal.load("runs/vqa")
    vilbert.ask("kitchen.jpg", "what is on the table?")

Prepare data, train and evaluate, as the commands `comodal prepare`, `comodal train` and `comodal evaluate`::

    comodal.prepare_videos("videos/", "shards/")
    comodal.train("l3net", {"data": "shards/"}, "runs/l3net")
    comodal.evaluate("esc50", data="ESC-50", model="runs/l3net", out="results/esc50").scores

Public names, each with its own help, such as `help(comodal.load)`:

- models: `load`, `AudioVisualPipeline`, `VisionLanguagePipeline`, `L3Net`, `L3NetConfig`, `AVENet`, `ViLBERT`,
  `ViLBERTConfig`
- data: `prepare_videos`, `prepare_pairs`, `prepare_regions`, `extract_regions`, `synthesize`, `ShardReader`
- training and use: `train`, `evaluate`, `EvaluationResult`, `export`, `push_to_hub`
- errors: `ComodalError`, and its kinds `MediaError`, `DataError`, `CheckpointError`, `RecipeError`

Each public name is imported from the module that defines it when it is first used, so that the help of the command line
does not import torch.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING

if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    # GNU OpenMP reads it when torch is imported. Threads that spin at barriers lose most of their speed next to another
    # busy process; with few spins they keep it, and lose nothing on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from comodal.data.shards.ingest import prepare_videos as prepare_videos
    from comodal.data.shards.paired_files import prepare_pairs as prepare_pairs
    from comodal.data.shards.shard_reader import ShardReader as ShardReader
    from comodal.errors import CheckpointError as CheckpointError
    from comodal.errors import ComodalError as ComodalError
    from comodal.errors import DataError as DataError
    from comodal.errors import MediaError as MediaError
    from comodal.errors import RecipeError as RecipeError
    from comodal.hub import push_to_hub as push_to_hub
    from comodal.inference.audio_visual import AudioVisualPipeline as AudioVisualPipeline
    from comodal.inference.load_pipeline import load as load
    from comodal.inference.vision_language import VisionLanguagePipeline as VisionLanguagePipeline
    from comodal.models.ave_net.ave_net import AVENet as AVENet
    from comodal.models.l3net.l3net import L3Net as L3Net
    from comodal.models.l3net.l3net import L3NetConfig as L3NetConfig
    from comodal.models.vilbert.vilbert import ViLBERT as ViLBERT
    from comodal.models.vilbert.vilbert_config import ViLBERTConfig as ViLBERTConfig
    from comodal.regions.extract import extract_regions as extract_regions
    from comodal.regions.prepare_regions import prepare_regions as prepare_regions
    from comodal.runtimes.export import export as export
    from comodal.synthetic.synthesize import synthesize as synthesize
    from comodal.tasks.evaluate_task import EvaluationResult as EvaluationResult
    from comodal.tasks.evaluate_task import evaluate as evaluate
    from comodal.training.run import train as train

_DEFINED_IN = {
    "AVENet": "comodal.models.ave_net.ave_net",
    "AudioVisualPipeline": "comodal.inference.audio_visual",
    "CheckpointError": "comodal.errors",
    "ComodalError": "comodal.errors",
    "DataError": "comodal.errors",
    "EvaluationResult": "comodal.tasks.evaluate_task",
    "L3Net": "comodal.models.l3net.l3net",
    "L3NetConfig": "comodal.models.l3net.l3net",
    "MediaError": "comodal.errors",
    "RecipeError": "comodal.errors",
    "ShardReader": "comodal.data.shards.shard_reader",
    "ViLBERT": "comodal.models.vilbert.vilbert",
    "ViLBERTConfig": "comodal.models.vilbert.vilbert_config",
    "VisionLanguagePipeline": "comodal.inference.vision_language",
    "evaluate": "comodal.tasks.evaluate_task",
    "export": "comodal.runtimes.export",
    "extract_regions": "comodal.regions.extract",
    "load": "comodal.inference.load_pipeline",
    "prepare_pairs": "comodal.data.shards.paired_files",
    "prepare_regions": "comodal.regions.prepare_regions",
    "prepare_videos": "comodal.data.shards.ingest",
    "push_to_hub": "comodal.hub",
    "synthesize": "comodal.synthetic.synthesize",
    "train": "comodal.training.run",
}
PUBLIC_NAMES = ("__version__", *_DEFINED_IN)


def __getattr__(name: str) -> object:
    if name == "__version__":  # reading the version takes longer than the rest of a command's help
        return importlib.import_module("importlib.metadata").version("comodal")
    if name not in _DEFINED_IN:
        raise AttributeError(f"comodal has no public name {name!r}")
    return getattr(importlib.import_module(_DEFINED_IN[name]), name)


def __dir__() -> list[str]:
    return sorted(PUBLIC_NAMES)
