"""Networks that were not pretrained on captions: a BERT in the text stream, all else random (ViLBERT, table 1)."""

from pathlib import Path
from typing import NamedTuple

import torch

from comodal.data.regions.region_store import RegionStore
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.convert.backbone_variants import RegionSizes, ViLBERTVariant, build_backbone_config
from comodal.models.convert.convert_bert import load_bert_weights
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.task_model import build_backbone
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.training.memory_limits import check_model_fits


class BERTNetwork(NamedTuple):
    """A network in evaluation mode, its vocabulary, and the names of the parameters that came from the BERT."""

    network: ViLBERT | SingleStream
    tokenizer: WordPieceTokenizer
    filled: tuple[str, ...]


def build_network_from_bert(
    bert: Path, store: RegionStore, variant: ViLBERTVariant, seed: int, loads_weights: bool
) -> BERTNetwork:
    """A network of a variant for the regions of a store, with the sizes of a BERT.

    Args:
        bert: Hugging Face BERT: a folder.
        store: The regions.
        variant: The network.
        seed: Seed of the random initialization.
        loads_weights: Whether the text stream has the BERT's weights.

    Raises:
        CheckpointError: There is no BERT in the folder, or it lacks a tensor.
        DataError: Its vocabulary cannot be read.
    """
    tokenizer = WordPieceTokenizer.read(bert)
    sizes = RegionSizes(store.dim, store.classes or store.dim, 0)
    config = build_backbone_config(variant, bert, tokenizer.size, sizes)
    check_model_fits(lambda: build_backbone(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_backbone(config)
    filled = load_bert_weights(network, bert).filled if loads_weights else ()
    return BERTNetwork(network.eval(), tokenizer, filled)
