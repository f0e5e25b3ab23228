"""Folders of what the original ViLBERT gave: its configuration, weights, inputs and outputs, and ours from the same.

Every folder under $COMODAL_FIXTURES/vilbert with a config.json is used, whatever its configuration.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from comodal.data.batch import CaptionBatch
from comodal.models.convert.convert_vilbert import find_task_heads, load_original_weights, read_original_config
from comodal.models.convert.state_dicts import read_tensors
from comodal.models.vilbert.heads import TaskHeads
from comodal.models.vilbert.streams import ViLBERTOutput
from comodal.models.vilbert.transformer import Attention
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.text_files import read_json
from tests.support.paths import PARITY_FIXTURES

FIXTURES = PARITY_FIXTURES / "vilbert"
FOLDERS = sorted(path.parent for path in FIXTURES.glob("*/config.json"))
TARGETS = ("classes", "features", "contrast")  # the original's visual_target 0, 1 and 2


def folders_with(name: str) -> list[Path]:
    return [folder for folder in FOLDERS if (folder / name).is_file()]


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """The folder's own weights, or those of the folder that extra.json or trajectory.json names."""
    if (folder / "state.safetensors").is_file():
        return read_tensors(folder / "state.safetensors")
    described = folder / ("extra.json" if (folder / "extra.json").is_file() else "trajectory.json")
    words = re.findall(r"\w+", json.dumps(read_json(described)))
    (named,) = {word for word in words if (FIXTURES / word / "state.safetensors").is_file()}
    return read_tensors(FIXTURES / named / "state.safetensors")


def model_of(folder: Path) -> ViLBERT:
    model = ViLBERT(read_original_config(folder / "config.json").config)
    load_original_weights(model, state_of(folder), folder)
    return model.eval()


def heads_of(folder: Path, model: ViLBERT) -> TaskHeads:
    config, state = model.config, state_of(folder)
    heads = TaskHeads(config.text.dim, config.vision.dim, config.joint_dim, config.fusion, find_task_heads(state))
    load_original_weights(model, state, folder, heads)
    return heads.eval()


def text_inputs(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    words = inputs["input_ids"]
    everything = torch.ones_like(words)
    segments = inputs.get("token_type_ids", torch.zeros_like(words))
    return words, segments, inputs.get("attention_mask", everything).bool()


def vision_inputs(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    regions = inputs["image_feat"]
    everything = torch.ones(regions.shape[:2], dtype=torch.bool)
    return regions, inputs["image_loc"], inputs.get("image_attention_mask", everything).bool()


def forward(model: ViLBERT, inputs: dict[str, torch.Tensor]) -> ViLBERTOutput:
    tasks = inputs["task_ids"][:, 0] if model.config.task_tokens else None
    return model(*text_inputs(inputs), *vision_inputs(inputs), tasks)


def predictions(model: ViLBERT, output: ViLBERTOutput) -> dict[str, torch.Tensor]:
    """The three heads at every place, under the original's names."""
    return {
        "prediction_scores_t": model.compute_token_logits(output.token_states.flatten(0, 1)).unflatten(
            0, output.token_states.shape[:2]
        ),
        "prediction_scores_v": model.region_head(output.region_states.flatten(0, 1)).unflatten(
            0, output.region_states.shape[:2]
        ),
        "seq_relationship_score": model.alignment_head(output.pooled_text, output.pooled_vision),
    }


def batch_of(inputs: dict[str, torch.Tensor], target: str) -> CaptionBatch:
    """The original's matrices of labels (-1 where nothing is hidden, no column for the whole image) as flat places."""
    words, segments, words_attended = text_inputs(inputs)
    regions, locations, regions_attended = vision_inputs(inputs)
    labels, hidden = inputs["masked_lm_labels"].flatten(), inputs["image_label"] == 1
    masked_words = (labels != -1).nonzero().flatten()
    padded = torch.cat([torch.zeros(len(hidden), 1, dtype=torch.bool), hidden], 1)
    masked_regions = padded.flatten().nonzero().flatten()
    known = inputs["image_target"][hidden]
    return CaptionBatch(
        token_ids=words,
        token_types=segments,
        token_mask=words_attended,
        region_features=regions,
        spatials=locations,
        region_mask=regions_attended,
        image_rows=torch.arange(len(words)),
        is_match=inputs["next_sentence_label"] == 0,
        masked_token_indices=masked_words,
        token_targets=labels[masked_words],
        masked_region_indices=masked_regions,
        feature_targets=known if target != "classes" else torch.zeros(len(known), regions.shape[2]),
        class_targets=known if target == "classes" else torch.zeros(len(known), 0),
        visual_token_targets=torch.zeros(0, dtype=torch.int64),
        visual_tokens=torch.zeros(regions.shape[:2], dtype=torch.int64),
        unpadded_token_indices=words_attended.flatten().nonzero().flatten(),
        unpadded_region_indices=regions_attended.flatten().nonzero().flatten(),
        keys=tuple(str(i) for i in range(len(words))),
    )


@contextmanager
def watched(model: ViLBERT) -> Iterator[dict[str, torch.Tensor]]:
    """Outputs of all modules by name; `name:input` before projections; `name:queries` and `name:keys` of attention."""
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str, module: torch.nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        seen[name] = output
        seen[f"{name}:input"] = arguments[0]
        if isinstance(module, Attention):
            x, context, _, *gates = arguments
            seen[f"{name}:queries"], seen[f"{name}:keys"] = module.project_queries_and_keys(x, context, *gates)

    handles = [module.register_forward_hook(partial(watch, name)) for name, module in model.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
