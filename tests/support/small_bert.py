"""A small BERT as Hugging Face's files, randomly initialized."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from comodal.models.convert.convert_bert import map_names_to_bert
from comodal.models.dual_encoder.dual_encoder import DualEncoder, DualEncoderConfig
from comodal.models.vilbert.vilbert_config import StreamConfig

POSITIONS = 40


def write_small_bert(folder: Path, vocabulary: Sequence[str], dim: int = 32, seed: int = 0) -> Path:
    """Two layers; the weights are of size 1, so that texts differ."""
    folder.mkdir()
    config = {"model_type": "bert", "vocab_size": len(vocabulary), "hidden_size": dim, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.1}
    config |= {"attention_probs_dropout_prob": 0.1, "max_position_embeddings": POSITIONS, "type_vocab_size": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    model = DualEncoder(DualEncoderConfig(StreamConfig(dim, 2, 4, 64), len(vocabulary), POSITIONS, 0, 2, 4))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, bert_name in map_names_to_bert(model).items():
        size = model.state_dict()[name].shape
        values = torch.randn(size, generator=generator) * (1.0 if "embeddings" in name else 0.2)
        weights[bert_name] = values + 1.0 if name.endswith("norm.weight") else values
    save_file(weights, folder / "model.safetensors")
    return folder
