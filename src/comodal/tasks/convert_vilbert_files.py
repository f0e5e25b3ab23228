"""Converts published ViLBERT weights to comodal's model folders and back (both original releases, 12-in-1, MMF, VOLTA).

No code in a file is executed. OUT/report.txt accounts for every tensor. Each conversion is verified: the written model
is loaded, converted back, and compared with the file tensor by tensor.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from comodal.console import print_line
from comodal.errors import CheckpointError
from comodal.files import write_bytes_atomically
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import MODEL_CONFIG_FILE, find_model_folder, load_model, refuse_packed_run, save_model
from comodal.models.convert.convert_single_stream import (
    add_region_types,
    fold_region_type,
    is_single_stream_config,
    parse_single_stream_config,
    to_single_stream_config,
)
from comodal.models.convert.convert_vilbert import (
    TASK_TOKENS_KEY,
    drop_tied_copies,
    export_original_state,
    find_task_heads,
    is_unused_parameter,
    load_original_weights,
    map_names_to_original,
    parse_original_config,
    rename_to_multi_task,
    to_original_config,
)
from comodal.models.convert.convert_volta import convert_volta_to_vilbert, is_volta_config
from comodal.models.convert.state_dicts import (
    LoadReport,
    check_config_against_shapes,
    read_tensors,
    translate_shape_errors,
)
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.single_stream import SingleStream, SingleStreamConfig
from comodal.models.vilbert.task_model import TaskModel, build_backbone
from comodal.models.vilbert.task_model import TaskModelConfig as TaskConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.tasks.vision_language.answer_files import (
    ANSWERS_FILE,
    GQA_ANSWERS_FILE,
    GQA_HEAD,
    VQA_HEAD,
    encode_answers,
    read_answer_vocabulary,
)
from comodal.text_files import read_json_object

VILBERT_REPORT_FILE = "report.txt"
TASK_EMBEDDINGS_KEY, REGION_DECODER_KEY = (
    "bert.embeddings.task_embeddings.weight",
    "cls.imagePredictions.decoder.weight",
)


@dataclass(frozen=True)
class ViLBERTConversion:
    """The numbers of tensors of a conversion; report.txt lists them.

    Args:
        filled: Converted tensors.
        new: Parameters of the model that the file does not have.
        unused: Tensors of the file that have no counterpart.
        difference: The largest difference after converting back; None where the original's files are written.
    """

    filled: int
    new: int = 0
    unused: int = 0
    difference: float | None = None


def convert(
    source: Path,
    out: Path,
    original_config: Path | None = None,
    vocabulary: Path | None = None,
    answers: Path | None = None,
    gqa_answers: Path | None = None,
    allow_missing: bool = False,
) -> ViLBERTConversion:
    """Converts ViLBERT's published weights into a model folder, or a model folder into the original's files.

    Those of the single-stream baseline (bert_base_baseline.json) become a single stream.

    Args:
        source: pretrained_model.bin, multi_task_model.bin or a fine-tuned one of either original repository, of MMF or
            VOLTA, or as safetensors; or a run or model folder of comodal, which is converted back.
        out: The output folder: a comodal model, or pytorch_model.safetensors and config.json as the original
            loads them.
        original_config: The original's JSON configuration of the weights (bert_base_6layer_6conect.json, ...).
        vocabulary: The BERT vocabulary of the weights (vocab.txt or a BERT folder), for the tokenizer.
        answers: The answer of each output of the answer head: trainval_label2ans.pkl, or the same as JSON.
        gqa_answers: The same for the head of GQA, of a multi-task model.
        allow_missing: Randomly initialize encoder tensors that the file lacks; without it, a missing tensor is an
            error. Poolers, heads and co-attention as a whole may be missing.

    Returns:
        The counts of loaded, new and unused parameters, and the largest difference after converting back.

    Raises:
        CheckpointError: The file is damaged, holds more than tensors, or does not match the configuration.
        DataError: The vocabulary or the answers cannot be read, or do not match the weights.

    Examples:
        comodal convert vilbert pretrained_model.bin vilbert/ --original-config bert_base_6layer_6conect.json
        comodal convert vilbert runs/vilbert/ original/
    """
    if source.is_dir() and any((folder / MODEL_CONFIG_FILE).is_file() for folder in (source, source / "model")):
        return export_original_files(source, out)
    refuse_packed_run(source)
    if original_config is None:
        raise CheckpointError(f"{source}: pass --original-config, the JSON configuration of these weights")
    vocabularies = {VQA_HEAD: answers, GQA_HEAD: gqa_answers}
    return import_original_weights(source, out, original_config, vocabulary, vocabularies, allow_missing)


def import_original_weights(
    source: Path,
    out: Path,
    config: Path,
    vocabulary: Path | None,
    answers: Mapping[str, Path | None],
    allow_missing: bool,
) -> ViLBERTConversion:
    """Writes a model folder from published weights; `answers` has the answer file of each head."""
    state, values = read_tensors(source), read_json_object(config, CheckpointError)
    with translate_shape_errors(source):
        state, sizes, ignored_keys = rename_original_tensors(state, values, source, config)
        heads = find_task_heads(state)
    extra_files = {"tokenizer.json": WordPieceTokenizer.read(vocabulary).to_json()} if vocabulary else {}
    for name, file in ((VQA_HEAD, ANSWERS_FILE), (GQA_HEAD, GQA_ANSWERS_FILE)):
        if (path := answers[name]) is not None:
            extra_files[file] = convert_answers(path, source, name, heads)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_config_against_shapes(lambda: build_backbone(sizes), map_names_to_original, shapes, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TaskModel(TaskConfig(sizes, heads)) if heads else build_backbone(sizes)
    report = load_original_tensors(model, state, source, allow_missing)
    save_model(model, out, {"recipe": "convert", "source": source.name})
    for name, data in extra_files.items():
        write_bytes_atomically(out / name, data)
    ignored = [f"ignored in {config.name}: {key}" for key in ignored_keys]
    write_bytes_atomically(out / VILBERT_REPORT_FILE, ("\n".join([*report.format_lines(), *ignored]) + "\n").encode())
    difference, compared = verify_conversion(out, state)
    print_line(f"{source}: {report.format_lines()[0]}; every tensor is listed in {out / VILBERT_REPORT_FILE}")
    if ignored_keys:
        print_line(f"unused keys of {config.name}: {', '.join(ignored_keys)}")
    print_line(f"converted back and compared: {compared:,} tensors, largest difference {difference:.1g}")
    if vocabulary is None:
        print_line(f"{out} has no vocabulary: pass --vocabulary to ask questions or to train it")
    return ViLBERTConversion(len(report.filled), len(report.new), len(report.unused), difference)


def rename_original_tensors(
    state: dict[str, Tensor], values: dict[str, Any], source: Path, config: Path
) -> tuple[dict[str, Tensor], ViLBERTConfig | SingleStreamConfig, tuple[str, ...]]:
    """The tensors of any release under the names of vilbert-multi-task, the sizes of their model, and the keys of the
    configuration that it does not read.

    Raises:
        CheckpointError: The configuration and the tensors are not those of a ViLBERT.
    """
    state = rename_to_multi_task(state, source)
    if is_volta_config(values):
        values, state = convert_volta_to_vilbert(values, state, config)
    state = drop_tied_copies(state)
    if is_single_stream_config(values):
        baseline, ignored_keys = parse_single_stream_config(values, state, config)
        return fold_region_type(state, source), baseline, ignored_keys
    original, ignored_keys = parse_original_config(values, config)
    return state, complete_original_config(original, state, TASK_TOKENS_KEY not in values), ignored_keys


def convert_answers(answers: Path, source: Path, name: str, heads: Sequence[Head]) -> bytes:
    """The file with the answer of each output of a head.

    Raises:
        CheckpointError: The head has another number of outputs, or the weights have no such head.
    """
    answer_list, outputs = read_answer_vocabulary(answers), {head.name: head.outputs for head in heads}
    if len(answer_list) != outputs.get(name):
        raise CheckpointError(
            f"{answers} has {len(answer_list):,} answers, the answer head of {source} ({name}) {outputs.get(name)}"
        )
    return encode_answers(answer_list)


def complete_original_config(config: ViLBERTConfig, state: dict[str, Tensor], by_flag: bool) -> ViLBERTConfig:
    """Adds to the configuration what the original's scripts set by flags: the width of the region head, and task tokens
    unless the file specifies them.
    """
    decoder, tasks = state.get(REGION_DECODER_KEY), state.get(TASK_EMBEDDINGS_KEY)
    if decoder is not None:
        config = replace(config, region_targets=len(decoder))
    return replace(config, task_tokens=0 if tasks is None else len(tasks)) if by_flag else config


def load_original_tensors(
    model: ViLBERT | SingleStream | TaskModel, state: dict[str, Tensor], source: Path, allow_missing: bool
) -> LoadReport:
    """Loads the tensors and reports how each is used."""
    if isinstance(model, TaskModel):
        return load_original_weights(model.vilbert, state, source, model.heads, allow_missing)
    return load_original_weights(model, state, source, allow_missing=allow_missing)


def verify_conversion(folder: Path, state: dict[str, Tensor]) -> tuple[float, int]:
    """Loads the written model, converts it back and compares: the largest difference, and the number of tensors.

    Raises:
        CheckpointError: A tensor differs.
    """
    converted = build_original_state(load_model(folder))
    shared = [name for name in converted if name in state and not is_unused_parameter(name)]
    difference = max(float((converted[name] - state[name].float()).abs().max()) for name in shared)
    if difference:
        raise CheckpointError(f"{folder}: the written model differs from its source by {difference}")
    return difference, len(shared)


def build_original_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict that the original code loads."""
    backbone, heads = (model.vilbert, model.heads) if isinstance(model, TaskModel) else (model, None)
    if not isinstance(backbone, ViLBERT | SingleStream):
        raise CheckpointError(f"a {type(model).__name__} has no counterpart among the original's models")
    if isinstance(backbone, SingleStream) and backbone.config.num_visual_tokens:
        raise CheckpointError("a single stream on visual tokens has no counterpart among the original's models")
    state = export_original_state(backbone, heads)
    if isinstance(backbone, SingleStream):
        return add_region_types(state, backbone.config.num_token_types)
    return state


def export_original_files(source: Path, out: Path) -> ViLBERTConversion:
    """Writes the original's files from a comodal model folder."""
    model = load_model(source)
    state = build_original_state(model)
    config = model.vilbert.config if isinstance(model, TaskModel) else model.config
    if isinstance(config, SingleStreamConfig):
        original_config = to_single_stream_config(config)
    else:
        assert isinstance(config, ViLBERTConfig)
        original_config = to_original_config(config)
    out.mkdir(parents=True, exist_ok=True)
    final = out / "pytorch_model.safetensors"
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, temporary)
    temporary.replace(final)
    write_bytes_atomically(out / "config.json", (json.dumps(original_config, indent=2) + "\n").encode())
    for name in ("tokenizer.json", ANSWERS_FILE, GQA_ANSWERS_FILE):
        if (find_model_folder(source) / name).is_file():
            write_bytes_atomically(out / name, (find_model_folder(source) / name).read_bytes())
    print_line(f"{out}: {len(state):,} tensors under the original's names, and its configuration")
    return ViLBERTConversion(len(state))
