"""comodal: self-supervised representations from video with audio, and from images with text.

Each public name is imported from the module that defines it when it is first used, so that the help of the command line
does not import torch.
"""

import importlib
import os
import sys

if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    # GNU OpenMP reads it when torch is imported. Threads that spin at barriers lose most of their speed next to another
    # busy process; with few spins they keep it, and lose nothing on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_DEFINED_IN = {
    "AudioVisualPipeline": "comodal.inference.audio_visual",
    "CheckpointError": "comodal.errors",
    "ComodalError": "comodal.errors",
    "DataError": "comodal.errors",
    "embed_audio": "comodal.inference.embed_files",
    "embed_image": "comodal.inference.embed_files",
    "embed_video": "comodal.inference.embed_files",
    "evaluate_dcase": "comodal.tasks.audio.dcase",
    "evaluate_entailment": "comodal.tasks.vision_language.snli_ve",
    "evaluate_esc50": "comodal.tasks.audio.esc50",
    "evaluate_gqa": "comodal.tasks.vision_language.question_answering.gqa",
    "evaluate_grounding": "comodal.tasks.vision_language.grounding.refcoco",
    "evaluate_images": "comodal.tasks.image.linear_classification",
    "evaluate_nlvr2": "comodal.tasks.vision_language.nlvr2",
    "evaluate_phrases": "comodal.tasks.vision_language.grounding.flickr30k_entities",
    "evaluate_retrieval": "comodal.tasks.retrieval.caption_retrieval",
    "evaluate_sounds": "comodal.tasks.audio.audio_folders",
    "evaluate_us8k": "comodal.tasks.audio.urbansound8k",
    "evaluate_vcr": "comodal.tasks.vision_language.vcr",
    "evaluate_visual_genome": "comodal.tasks.vision_language.question_answering.visual_genome",
    "evaluate_vqa": "comodal.tasks.vision_language.question_answering.vqa",
    "export": "comodal.runtimes.export",
    "extract_regions": "comodal.regions.extract",
    "from_pretrained": "comodal.hub",
    "image_embedding": "comodal.inference.embed_inputs",
    "inspect": "comodal.analysis.inspect_path",
    "L3Net": "comodal.models.l3net.l3net",
    "L3NetConfig": "comodal.models.l3net.l3net",
    "load": "comodal.inference.load_pipeline",
    "load_model": "comodal.models.checkpoint",
    "synthesize": "comodal.synthetic.synthesize",
    "match_files": "comodal.inference.match",
    "MediaError": "comodal.errors",
    "open_index": "comodal.inference.image_search.search",
    "prepare_pairs": "comodal.data.shards.paired_files",
    "prepare_regions": "comodal.regions.prepare_regions",
    "prepare_tokens": "comodal.regions.visual_tokens",
    "prepare_videos": "comodal.data.shards.ingest",
    "push_to_hub": "comodal.hub",
    "RecipeError": "comodal.errors",
    "save_model": "comodal.models.checkpoint",
    "save_pretrained": "comodal.hub",
    "ShardReader": "comodal.data.shards.shard_reader",
    "sound_embedding": "comodal.inference.embed_inputs",
    "train": "comodal.training.run",
    "ViLBERT": "comodal.models.vilbert.vilbert",
    "ViLBERTConfig": "comodal.models.vilbert.vilbert_config",
    "VisionLanguagePipeline": "comodal.inference.vision_language",
}
__all__ = ["__version__", *_DEFINED_IN]


def __getattr__(name: str) -> object:
    if name == "__version__":  # reading the version takes longer than the rest of a command's help
        return importlib.import_module("importlib.metadata").version("comodal")
    if name not in _DEFINED_IN:
        raise AttributeError(f"comodal has no public name {name!r}")
    return getattr(importlib.import_module(_DEFINED_IN[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
