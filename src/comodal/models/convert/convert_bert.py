"""Initializes the text stream from a pretrained BERT or RoBERTa of Hugging Face (ViLBERT, section 3.1)."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from comodal.errors import CheckpointError
from comodal.models.checkpoint import parse_config_value
from comodal.models.convert.convert_vilbert import ORIGINAL_STREAM_KEYS as ORIGINAL_STREAM
from comodal.models.convert.convert_vilbert import drop_tied_copies, map_names_to_original
from comodal.models.convert.state_dicts import (
    INDEX_SUFFIX,
    WEIGHT_FILE_NAMES,
    LoadReport,
    check_config_against_shapes,
    check_encoder_complete,
    copy_matching_weights,
    read_shapes,
    read_tensors,
)
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig, ViLBERTConfig
from comodal.text_files import read_json_object

TEXT_PREFIXES = ("text_embeddings.", "text_layers.", "token_head.")
PAIR_PREFIXES = ("pooler.", "alignment_head.")  # a single stream also has BERT's pooler and next-sentence head
BERT_WEIGHT_FILES = (*WEIGHT_FILE_NAMES, *(f"{name}{INDEX_SUFFIX}" for name in WEIGHT_FILE_NAMES))
ROBERTA_RENAMES = {
    "roberta.": "bert.",
    "lm_head.dense.": "cls.predictions.transform.dense.",
    "lm_head.layer_norm.": "cls.predictions.transform.LayerNorm.",
    "lm_head.bias": "cls.predictions.bias",
    "lm_head.decoder.": "cls.predictions.decoder.",
    "embeddings.": "bert.embeddings.",  # a model without heads has no name prefix
    "encoder.": "bert.encoder.",
    "pooler.": "bert.pooler.",
}
BERT_STREAM_KEYS = ORIGINAL_STREAM | {"norm_eps": "layer_norm_eps"}
BERT_CONFIG_DEFAULTS: dict[str, object] = {
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "model_type": "bert",
}
ROBERTA_TYPES = ("roberta", "xlm-roberta", "camembert")  # their positions start after the padding token


def derive_config_from_bert(bert: Path, template: ViLBERTConfig) -> ViLBERTConfig:
    """Returns a configuration whose text stream has the sizes of a BERT.

    Args:
        bert: The folder of a Hugging Face checkpoint, or a file in it.
        template: Configuration of everything else. Its co-attention layers keep their indices in the vision stream, and
            are inserted before the last layers of the BERT.

    Raises:
        CheckpointError: There is no config.json, or it is not a BERT's, or it has fewer layers than co-attention needs.
    """
    path = (bert if bert.is_dir() else bert.parent) / "config.json"
    values = BERT_CONFIG_DEFAULTS | read_json_object(path, CheckpointError)
    if missing := [
        key for key in (*BERT_STREAM_KEYS.values(), "vocab_size", "max_position_embeddings") if key not in values
    ]:
        raise CheckpointError(f"{path}: not the configuration of a BERT, it lacks {missing}")
    kind, positions = values["model_type"], values["position_embedding_type"]
    if kind not in ("bert", *ROBERTA_TYPES) or positions != "absolute":
        raise CheckpointError(f"{path}: a {kind} with {positions} positions; only BERT and RoBERTa are supported")
    text = parse_config_value(
        StreamConfig, {field: values[bert_key] for field, bert_key in BERT_STREAM_KEYS.items()}, str(path)
    )
    padding = values.get("pad_token_id", 1) if kind in ROBERTA_TYPES else -1
    sizes = {
        "vocabulary": values["vocab_size"],
        "positions": values["max_position_embeddings"],
        "num_token_types": values.get("type_vocab_size", 2),
        "first_position": padding + 1 if isinstance(padding, int) else padding,
    }
    checked = {name: parse_config_value(int, value, f"{path}: {name}") for name, value in sizes.items()}
    first = text.layers - len(template.co_attention_layers)
    if first < 0:
        raise CheckpointError(
            f"{path}: {text.layers} layers cannot hold {len(template.co_attention_layers)} co-attention layers"
        )
    schedule = tuple((vision, first + i) for i, (vision, _) in enumerate(template.co_attention_layers))
    try:
        config = replace(template, text=text, co_attention_layers=schedule, **checked)
    except ValueError as error:
        raise CheckpointError(f"{path}: no model has this configuration: {error}") from error
    if not bert.is_dir() or any((bert / name).is_file() for name in BERT_WEIGHT_FILES):
        shapes = {normalize_bert_name(name): shape for name, shape in read_shapes(bert).items()}
        check_config_against_shapes(lambda: ViLBERT(config), map_names_to_bert, shapes, bert)
    return config


def load_bert_weights(model: nn.Module, path: Path, allow_missing: bool = False) -> LoadReport:
    """Copies a BERT's weights into the text stream of a model, and into its token head if the file has one.

    Args:
        model: ViLBERT, or another model with its text stream.
        path: The folder of a Hugging Face checkpoint, or its model.safetensors or pytorch_model.bin.
        allow_missing: Leave tensors that the file lacks randomly initialized.

    Returns:
        A report on every weight; `filled` are the model's parameters that came from BERT.

    Raises:
        CheckpointError: The file is damaged, holds more than tensors, lacks some, or does not match the model.
    """
    state = {normalize_bert_name(name): tensor for name, tensor in read_tensors(path).items()}
    names = map_names_to_bert(model)
    if "bert.embeddings.word_embeddings.weight" not in state:
        raise CheckpointError(f"{path}: not a BERT, it has no word embeddings; it begins with {list(state)[:3]}")
    return check_encoder_complete(
        copy_matching_weights(model, drop_tied_copies(state), names, path), names, path, allow_missing
    )


def map_names_to_bert(model: nn.Module) -> dict[str, str]:
    """Our name -> BERT's, for the text stream and the token head, and for all of BERT's heads in a single stream."""
    prefixes = (*TEXT_PREFIXES, *PAIR_PREFIXES) if isinstance(model, SingleStream) else TEXT_PREFIXES
    return {
        comodal_name: bert_name
        for comodal_name, bert_name in map_names_to_original(model).items()
        if comodal_name.startswith(prefixes)
    }


def normalize_bert_name(name: str) -> str:
    """Normalizes a name to that of BERT with its heads."""
    for prefix, replacement in ROBERTA_RENAMES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name
