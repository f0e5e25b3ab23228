"""comodal: representations from modalities that go together, without labels.

The public names; each is imported from the module that defines it when it is first used, so that the command
line's help does not wait for torch.
"""

import importlib
import os
import sys

if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    # GNU OpenMP reads it when torch is loaded. Threads that spin at barriers lose most of their speed beside another
    # busy process; with few spins they keep it, and lose nothing on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_DEFINED_IN = {
    "CheckpointError": "comodal.errors",
    "ComodalError": "comodal.errors",
    "DataError": "comodal.errors",
    "L3Net": "comodal.models.l3net",
    "MediaError": "comodal.errors",
    "RecipeError": "comodal.errors",
    "Shards": "comodal.data.shards",
    "embed_audio": "comodal.serve.embed",
    "embed_image": "comodal.serve.embed",
    "embed_video": "comodal.serve.embed",
    "evaluate_dcase": "comodal.tasks.dcase",
    "evaluate_entailment": "comodal.tasks.entailment",
    "evaluate_esc50": "comodal.tasks.sounds",
    "evaluate_gqa": "comodal.tasks.gqa",
    "evaluate_grounding": "comodal.tasks.grounding",
    "evaluate_images": "comodal.tasks.images",
    "evaluate_nlvr2": "comodal.tasks.nlvr2",
    "evaluate_phrases": "comodal.tasks.phrases",
    "evaluate_retrieval": "comodal.tasks.retrieval",
    "evaluate_sounds": "comodal.tasks.sound_folders",
    "evaluate_us8k": "comodal.tasks.urban_sounds",
    "evaluate_vcr": "comodal.tasks.vcr",
    "evaluate_vqa": "comodal.tasks.vqa",
    "evaluate_visual_genome": "comodal.tasks.visual_genome",
    "export": "comodal.serve.export",
    "extract_regions": "comodal.serve.extract",
    "from_pretrained": "comodal.serve.sharing",
    "image_embedding": "comodal.serve.embed_memory",
    "inspect": "comodal.analysis.describe",
    "load": "comodal.serve.answer",
    "load_model": "comodal.models.checkpoint",
    "make_playground": "comodal.playground.make",
    "match_files": "comodal.serve.match",
    "open_index": "comodal.serve.search",
    "prepare_pairs": "comodal.data.pair_folders",
    "prepare_regions": "comodal.serve.prepare_regions",
    "prepare_tokens": "comodal.serve.tokens",
    "prepare_videos": "comodal.data.ingest",
    "push_to_hub": "comodal.serve.sharing",
    "save_model": "comodal.models.checkpoint",
    "save_pretrained": "comodal.serve.sharing",
    "sound_embedding": "comodal.serve.embed_memory",
    "train": "comodal.training.run",
}
__all__ = ["__version__", *_DEFINED_IN]


def __getattr__(name: str) -> object:
    if name == "__version__":  # reading it takes longer than all else that the help of a command does
        return importlib.import_module("importlib.metadata").version("comodal")
    if name not in _DEFINED_IN:
        raise AttributeError(f"comodal has no public name {name!r}")
    return getattr(importlib.import_module(_DEFINED_IN[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
