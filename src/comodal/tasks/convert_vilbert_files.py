"""ViLBERT's published weights into our folders and back: both original repositories', 12-in-1's, MMF's, VOLTA's.

Nothing of a file is run. Every tensor is accounted for in OUT/report.txt, and the conversion is proven at once: what
was written is read again, turned back, and compared with the file tensor by tensor.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from comodal.console import say
from comodal.errors import CheckpointError
from comodal.files import write_whole
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import CONFIG, load_model, model_folder, refuse_packed, save_model
from comodal.models.convert.convert_vilbert import (
    TASK_KEY,
    as_later_code,
    config_of,
    fill_from_original,
    heads_in,
    is_never_used,
    original_names,
    said_once,
    to_original,
    to_original_config,
)
from comodal.models.convert.convert_volta import as_vilbert, is_volta
from comodal.models.convert.state_dicts import LoadReport, check_sizes, read_tensors
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.task_model import TaskModelConfig as TaskConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.tasks.vision_language.question_answering.vqa_files import ANSWERS, HEAD, read_answers
from comodal.text_files import read_json_object

REPORT = "report.txt"
TASK_EMBEDDINGS, REGION_DECODER = "bert.embeddings.task_embeddings.weight", "cls.imagePredictions.decoder.weight"


def convert(
    source: Path,
    out: Path,
    original_config: Path | None = None,
    words: Path | None = None,
    answers: Path | None = None,
    allow_missing: bool = False,
) -> dict[str, float]:
    """Converts ViLBERT's published weights into a model folder, or a model folder into the original's files.

    Args:
        source: pretrained_model.bin, multi_task_model.bin or a fine-tuned one of either original repository, of MMF or
            VOLTA, or as safetensors; or a run or model folder of ours, which is turned back.
        out: The folder to write: a model for all commands, or pytorch_model.safetensors and config.json as the original
            loads them.
        original_config: The original's JSON configuration of the weights (bert_base_6layer_6conect.json, ...).
        words: The BERT vocabulary that belongs to them (vocab.txt or a BERT's folder), so that the model can read.
        answers: What the numbers of the answer head mean: trainval_label2ans.pkl, or the same as JSON.
        allow_missing: Initialize tensors of the encoder at random that the file does not have; without it that is an
            error. Poolers, heads and co-attention as a whole may be missing.

    Returns:
        How many parameters were filled, are new, and were not used, and the largest difference after the way back.

    Raises:
        CheckpointError: The file is damaged, holds more than tensors, or is of another configuration.
        DataError: The vocabulary or the answers cannot be read, or do not fit.

    Examples:
        comodal convert vilbert pretrained_model.bin vilbert/ --original-config bert_base_6layer_6conect.json
        comodal convert vilbert runs/mine/ original/
    """
    if source.is_dir() and any((folder / CONFIG).is_file() for folder in (source, source / "model")):
        return turn_back(source, out)
    refuse_packed(source)
    if original_config is None:
        raise CheckpointError(f"{source}: give --original-config, the JSON configuration that belongs to these weights")
    return take_over(source, out, original_config, words, answers, allow_missing)


def take_over(
    source: Path, out: Path, config: Path, words: Path | None, answers: Path | None, allow_missing: bool
) -> dict[str, float]:
    """A model folder from somebody's weights."""
    state, values = as_later_code(read_tensors(source)), read_json_object(config, CheckpointError)
    if is_volta(values):
        values, state = as_vilbert(values, state, config)
    state, described = said_once(state), config_of(values, config)
    sizes, heads = as_in(described.config, state, TASK_KEY not in values), heads_in(state)
    beside = {"tokenizer.json": WordPieceTokenizer.read(words).as_json()} if words else {}
    if answers is not None:
        told, outputs = read_answers(answers), {head.name: head.outputs for head in heads}
        if len(told) != outputs.get(HEAD):
            raise CheckpointError(
                f"{answers} has {len(told):,} answers, the answer head of {source} {outputs.get(HEAD)}"
            )
        beside[ANSWERS] = (json.dumps(told, ensure_ascii=False, indent=0) + "\n").encode()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_sizes(lambda: ViLBERT(sizes), original_names, shapes, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: ViLBERT | TaskModel = TaskModel(TaskConfig(sizes, heads)) if heads else ViLBERT(sizes)
    filled = filled_by(model, state, source, allow_missing)
    save_model(model, out, {"recipe": "convert", "source": source.name})
    for name, data in beside.items():
        write_whole(out / name, data)
    ignored = [f"ignored in {config.name}: {key}" for key in described.ignored]
    write_whole(out / REPORT, ("\n".join([*filled.lines(), *ignored]) + "\n").encode())
    difference, compared = proven(out, state)
    say(f"{source}: {filled.lines()[0]}; every name is in {out / REPORT}")
    if described.ignored:
        say(f"keys of {config.name} that nothing reads: {', '.join(described.ignored)}")
    say(f"turned back and compared: {compared:,} tensors, largest difference {difference:.1g}")
    if words is None:
        say(f"{out} has no vocabulary yet: give --words to ask and train it")
    return {
        "convert.filled": float(len(filled.filled)),
        "convert.new": float(len(filled.new)),
        "convert.unused": float(len(filled.unused)),
        "convert.difference": difference,
    }


def as_in(config: ViLBERTConfig, state: dict[str, Tensor], by_flag: bool) -> ViLBERTConfig:
    """The configuration with what the original's scripts decide by flags: the width of the region head, and task tokens
    unless the file says whether there are any."""
    decoder, tasks = state.get(REGION_DECODER), state.get(TASK_EMBEDDINGS)
    if decoder is not None:
        config = replace(config, region_targets=len(decoder))
    return replace(config, task_tokens=0 if tasks is None else len(tasks)) if by_flag else config


def filled_by(model: ViLBERT | TaskModel, state: dict[str, Tensor], source: Path, allow_missing: bool) -> LoadReport:
    """What became of every tensor."""
    if isinstance(model, TaskModel):
        return fill_from_original(model.vilbert, state, source, model.heads, allow_missing)
    return fill_from_original(model, state, source, allow_missing=allow_missing)


def proven(folder: Path, state: dict[str, Tensor]) -> tuple[float, int]:
    """The largest difference between a file and what was made of it, read again and turned back; and of how many.

    Raises:
        CheckpointError: A tensor differs.
    """
    again = original_state(load_model(folder))
    shared = [name for name in again if name in state and not is_never_used(name)]
    difference = max(float((again[name] - state[name].float()).abs().max()) for name in shared)
    if difference:
        raise CheckpointError(f"{folder}: what was written differs from its source by {difference}")
    return difference, len(shared)


def original_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict that the original loads."""
    if isinstance(model, TaskModel):
        return to_original(model.vilbert, model.heads)
    if isinstance(model, ViLBERT):
        return to_original(model)
    raise CheckpointError(f"a {type(model).__name__} has no counterpart among the original's models")


def turn_back(source: Path, out: Path) -> dict[str, float]:
    """The original's files from one of our folders."""
    model = load_model(source)
    state = original_state(model)
    config = model.vilbert.config if isinstance(model, TaskModel) else model.config
    assert isinstance(config, ViLBERTConfig)
    described = to_original_config(config)
    out.mkdir(parents=True, exist_ok=True)
    final = out / "pytorch_model.safetensors"
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, temporary)
    temporary.replace(final)
    write_whole(out / "config.json", (json.dumps(described, indent=2) + "\n").encode())
    for name in ("tokenizer.json", ANSWERS):
        if (model_folder(source) / name).is_file():
            write_whole(out / name, (model_folder(source) / name).read_bytes())
    say(f"{out}: {len(state):,} tensors under the original's names, and its configuration")
    return {"convert.filled": float(len(state))}
