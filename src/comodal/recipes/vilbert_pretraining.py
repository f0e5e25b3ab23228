"""Pretraining of ViLBERT: masked tokens, masked regions and image-text alignment (Lu et al., NeurIPS 2019).

The paper, section 3.2: Conceptual Captions (3.1 million pairs), a pretrained BERT-base, batches of 512 on 8 GPUs, Adam
with a learning rate of 1e-4, linear warmup and decay, 10 epochs, and all losses of equal weight. Its zero-shot
retrieval on Flickr30k (1,000 images) has a recall@1 of 31.86 %.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from torch import nn

from comodal import distributed
from comodal.console import print_line
from comodal.data.batch import TokenInput
from comodal.data.captions.caption_dataset import CaptionDataset, MaskingConfig
from comodal.data.captions.caption_files import Caption, read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.data.captions.caption_pairs import NegativeSampling
from comodal.data.loader import Loader, Workers
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError, RecipeError, check_number
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import load_model
from comodal.models.convert.convert_bert import derive_config_from_bert, load_bert_weights
from comodal.models.vilbert import single_stream
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import (
    ViLBERTConfig,
    make_base_config,
    make_large_config,
    make_small_vilbert_config,
)
from comodal.objectives.masked import RegionTarget
from comodal.objectives.pretraining import ViLBERTPretraining, count_target_columns
from comodal.tasks.vision_language.region_record import collect_region_record
from comodal.training.memory_limits import check_model_fits
from comodal.training.optimization import make_adamw, make_linear_schedule
from comodal.training.recipe_run import Run

ViLBERTVariant = Literal[
    "base_2", "base_4", "base_6", "base_8", "large_2", "large_4", "large_6", "small", "single_stream"
]
VILBERT_VARIANTS = {f"base_{count}": make_base_config(count) for count in (2, 4, 6, 8)} | {
    f"large_{n}": make_large_config(n) for n in (2, 4, 6)
}
BERT_REPORT_FILE = "bert.txt"  # which weights came from the BERT, which are new, and which of the BERT's were not used


class ViLBERTDefaults(NamedTuple):
    """Defaults of a variant, for parameters that are None."""

    steps: int
    batch_size: int
    learning_rate: float
    validate_every: int


PAPER_VILBERT_DEFAULTS = ViLBERTDefaults(60_000, 512, 1e-4, 500)
SMALL_VILBERT_DEFAULTS = ViLBERTDefaults(3_000, 64, 1e-3, 250)  # the demo's learning rate and batch size
CONTRASTIVE_DIM = 128
VILBERT_VALIDATION_SEED_OFFSET = 1  # separates the random state of the validation pairs from that of the training pairs
MatchedPairs = list[tuple[Caption, int]]


@dataclass(frozen=True)
class PretrainingData:
    """The captions, the region store and the vocabulary."""

    store: RegionStore
    words: WordPieceTokenizer
    train: MatchedPairs
    validation: MatchedPairs

    def fingerprint(self) -> str:
        """The fingerprint of everything that training reads."""
        digest = hashlib.sha256(self.store.fingerprint.encode() + self.words.as_json())
        for caption, row in [*self.train, *self.validation]:
            digest.update(f"{row} {caption.caption}\n".encode())
        return digest.hexdigest()[:16]


def recipe(
    data: Path,
    captions: Path,
    bert: Path | None = None,
    allow_missing: bool = False,
    words: Path | None = None,
    start_from: Path | None = None,
    variant: ViLBERTVariant = "base_6",
    regions_as: Literal["features", "tokens"] = "features",
    region_targets: Sequence[str] | None = None,
    overlap: float | None = None,
    tell_mismatched: bool = True,
    replaced: Literal["caption", "image", "either"] = "either",
    faithful: bool = False,
    contrastive_weight: float = 0.0,
    dropout: float | None = None,
    max_words: int = 36,
    max_regions: int = 36,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    pretrained_rate: float = 0.1,
    weight_decay: float = 0.01,
    warm_up: float = 0.1,
    validation_share: float = 0.02,
    validation_pairs: int = 1024,
    workers: Workers = "auto",
    seed: int = 0,
) -> Run:
    """Pretrains ViLBERT on images with captions: masked tokens, masked regions and image-text alignment.

    Args:
        data: Region store, as written by `comodal prepare regions`.
        captions: Conceptual Captions TSV, Karpathy's or COCO's JSON, CSV, Parquet, JSON Lines, a folder with name.txt
            for each name.jpg, or tar shards, Parquet or Arrow files with the images (a folder, one file, or a glob
            pattern).
        bert: Hugging Face BERT (folder or file) that initializes the text stream; without it the text stream is
            randomly initialized.
        allow_missing: Randomly initialize tensors that the BERT's file lacks; without it a missing tensor is an error.
        words: Vocabulary: a vocab.txt or tokenizer.json; by default the BERT's, or without a BERT the words of the
            captions.
        start_from: Run or model of the same sizes whose weights initialize the model; --bert then only gives the
            vocabulary and the sizes of the text stream.
        variant: The paper's base model with 2, 4, 6 or 8 co-attention layers, one on BERT-large, a small one that
            trains on two CPU cores, or single_stream: one BERT over tokens and visual tokens (the paper's baseline).
        regions_as: Input of a region: its features, or its visual token (`comodal prepare tokens`).
        region_targets: Targets of masked regions, one or more of classes, features, contrast and tokens; by default the
            first that the store has of the detector's classes, tokens, and features.
        overlap: Also mask regions that overlap a masked one by more than this IoU; 12-in-1 uses 0.4.
        tell_mismatched: Also compute the masked losses on mismatched pairs; 12-in-1 does not.
        replaced: Part of a pair that is replaced to make a mismatched pair (a negative); the original's code replaces
            the caption.
        faithful: Mask, average and draw negatives as the original's code does where that differs from the paper.
        contrastive_weight: Weight of a contrastive loss between texts and images before the first co-attention layer,
            over the matched pairs of a process's batch (ALBEF's; not in the paper); 0 for none. With 1, small models
            train in fewer steps.
        dropout: Dropout of both streams and of attention; by default that of the BERT or the variant, 0.1. With 0,
            small models train faster, and a step on a CPU takes less time.
        max_words: Maximum number of tokens of a caption.
        max_regions: Maximum number of regions of an image.
        steps: Optimizer steps; by default 3,000 for small and single_stream, 60,000 for all other variants.
        batch_size: Captions in a step over all processes, half of them with their own image; by default 64 for small
            and single_stream, 512 for all other variants.
        learning_rate: Peak learning rate of AdamW; by default 1e-3 for small and single_stream, 1e-4 for all other
            variants.
        pretrained_rate: Learning rate scale of the weights that came from the BERT.
        weight_decay: Weight decay of the weight matrices only.
        warm_up: Fraction of the steps in which the learning rate rises linearly from 0; it then decays linearly to 0.
        validation_share: Fraction of the images held out for validation where the captions name no split.
        validation_pairs: Fixed pairs of held-out images, rounded up to whole batches; 0 for no validation.
        workers: Data loader processes; auto: two for a CPU, more for a GPU.
        seed: Random seed of the initial weights, the pairs and the masks.

    Examples:
        comodal train vilbert --data regions/ --captions captions.jsonl --bert bert-base-uncased/ --out runs/first
        torchrun --nproc_per_node 8 -m comodal train vilbert --data cc/ --captions cc.tsv --bert bert/ --out runs/cc
    """
    check_number("warm_up", warm_up, 0, 1)
    check_number("validation_share", validation_share, 0, 1)
    usual = SMALL_VILBERT_DEFAULTS if variant in ("small", "single_stream") else PAPER_VILBERT_DEFAULTS
    steps = usual.steps if steps is None else steps
    batch_size = usual.batch_size if batch_size is None else batch_size
    learning_rate = usual.learning_rate if learning_rate is None else learning_rate
    material = gather_pretraining_data(data, captions, words or bert, validation_share)
    targets = choose_region_targets(region_targets, material.store)
    if contrastive_weight and variant == "single_stream":
        raise ValueError("--variant single_stream has no encoders of one modality: leave out --contrastive-weight")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_pretraining_model(
            variant,
            material,
            targets,
            regions_as == "tokens",
            bert,
            dropout,
            CONTRASTIVE_DIM if contrastive_weight else 0,
        )
    check_caption_length(model, max_words)
    pretrained, report = fill_text_stream(model, bert, allow_missing)
    if start_from is not None:
        load_initial_weights(model, start_from)
    if faithful and replaced == "image":
        raise ValueError("--faithful replaces captions, as the original's code does: leave out --replaced image")
    hiding = MaskingConfig(overlap=overlap, tell_mismatched=tell_mismatched, faithful=faithful)
    mismatches = NegativeSampling(replaced="caption" if faithful else replaced, other_image=not faithful)

    def pairs(chosen: MatchedPairs, chance: int) -> CaptionDataset:
        made = CaptionDataset(
            chosen, material.store, material.words, chance, batch_size, max_words, max_regions, hiding, mismatches
        )
        if made.truncated and distributed.is_main_process():
            cut = f"{made.truncated:,} of {len(made):,} captions have more than {max_words} word pieces"
            print_line(f"{captions}: {cut} and lose their end (--max_words)")
        return made

    batches, validation = Loader(pairs(material.train, seed), batch_size, workers), None
    if validation_pairs and material.validation:
        length = -(-validation_pairs // batch_size) * batch_size
        validation = Loader(
            pairs(material.validation, seed + VILBERT_VALIDATION_SEED_OFFSET), batch_size, workers, length
        )
    objective = ViLBERTPretraining(model, targets, contrastive_weight=contrastive_weight, seed=seed)
    return Run(
        objective=objective,
        batches=batches,
        validation=validation,
        optimizer=make_adamw(
            objective, learning_rate, weight_decay, pretrained=pretrained, pretrained_share=pretrained_rate
        ),
        learning_rate=make_linear_schedule(learning_rate, steps, round(warm_up * steps)),
        steps=steps,
        seed=seed,
        fingerprint=material.fingerprint(),
        resolved={"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate},
        validate_every=usual.validate_every,
        files={
            "tokenizer.json": material.words.as_json(),
            **report,
            **collect_region_record(material.store, start_from),
        },
    )


def gather_pretraining_data(data: Path, captions: Path, words: Path | None, validation_share: float) -> PretrainingData:
    """Returns the captions whose image is in the store, split, and the vocabulary.

    Raises:
        DataError: A file is missing or damaged, or captions and store do not match.
    """
    store, read = RegionStore(data), read_captions(captions)
    found = match_captions(read, store.ids)
    parts = split_matched_captions(found.pairs, store.ids, validation_share, 0.0)
    if distributed.is_main_process():
        counts = ", ".join(f"{len(pairs):,} {split}" for split, pairs in parts.items() if pairs)
        empty = int((store.counts == 0).sum())
        images = f"{len(store):,} images" + (f" ({empty:,} without regions)" if empty else "")
        reasons = found.not_taken(read.refused)
        print_line(f"{captions} ({read.layout}): captions of {images}, {counts}{reasons}")
    if not parts["train"]:
        raise DataError(f"{captions}: no caption of an image of {data} is for training")
    if parts["validation"] and len({row for _, row in parts["validation"]}) == 1:  # a mismatched pair needs two
        parts["validation"] = []
        if distributed.is_main_process():
            print_line(
                f"{captions}: one image for validation is too few, so there is none (--validation_share takes more)"
            )
    vocabulary = (
        WordPieceTokenizer.read(words)
        if words
        else WordPieceTokenizer.of_texts(caption.caption for caption, _ in parts["train"])
    )
    return PretrainingData(store, vocabulary, parts["train"], parts["validation"])


def choose_region_targets(wanted: Sequence[str] | None, store: RegionStore) -> list[RegionTarget]:
    """Returns the targets of masked regions, which the store must have."""
    there = {"classes": store.classes > 0, "tokens": store.tokens > 0, "features": True, "contrast": True}
    for target in wanted or ():
        if target not in there:
            raise ValueError(f"unknown region target {target!r}; there are {', '.join(there)}")
        if not there[target]:
            raise DataError(f"{store.folder} has no {target}: `comodal prepare tokens {store.folder}` makes them")
    chosen = list(wanted or [next(target for target, is_there in there.items() if is_there)])
    return cast(list[RegionTarget], chosen)


def build_pretraining_model(
    variant: ViLBERTVariant,
    material: PretrainingData,
    targets: Sequence[RegionTarget],
    tokens: bool,
    bert: Path | None,
    dropout: float | None,
    contrastive_dim: int,
) -> nn.Module:
    """Returns a randomly initialized model of the right sizes."""
    store, vocabulary = material.store, material.words.size
    inputs = store.tokens + len(TokenInput)
    if (tokens or variant == "single_stream") and not store.tokens:
        raise DataError(f"{store.folder} has no visual tokens: `comodal prepare tokens {store.folder}` makes them")
    columns = sum(count_target_columns(targets, store.dim, store.classes, store.tokens).values())
    config = make_small_vilbert_config() if variant in ("small", "single_stream") else VILBERT_VARIANTS[variant]
    config = derive_config_from_bert(bert, like=config) if bert else replace(config, vocabulary=vocabulary)
    if vocabulary > config.vocabulary:
        raise RecipeError(
            f"--words has {vocabulary:,} pieces, the BERT {config.vocabulary:,}: they do not fit together"
        )
    if dropout is not None:
        text, vision = (
            replace(stream, dropout=dropout, attention_dropout=dropout) for stream in (config.text, config.vision)
        )
        config = replace(config, text=text, vision=vision)
    if variant == "single_stream":
        sizes = (config.vocabulary, config.positions, config.first_position, config.segments, config.text)
        rest = (inputs, columns, config.joint_dim, config.fusion, config.initializer_range)
        single = single_stream.SingleStreamConfig(*sizes, *rest)
        check_model_fits(lambda: single_stream.SingleStream(single))
        return single_stream.SingleStream(single)
    sized: ViLBERTConfig = replace(
        config,
        region_features=store.dim,
        region_targets=columns,
        region_tokens=inputs if tokens else 0,
        contrastive_dim=contrastive_dim,
    )
    check_model_fits(lambda: ViLBERT(sized))
    return ViLBERT(sized)


def check_caption_length(model: nn.Module, max_words: int) -> None:
    """Raises a RecipeError if captions could have more tokens than the model has positions."""
    config = cast(ViLBERTConfig | single_stream.SingleStreamConfig, model.config)
    longest = config.positions - config.first_position
    if max_words > longest:
        raise RecipeError(f"--max_words {max_words}: this model has positions for {longest} word pieces")


def fill_text_stream(
    model: nn.Module, bert: Path | None, allow_missing: bool
) -> tuple[list[nn.Parameter], dict[str, bytes]]:
    """Initializes the text stream from a BERT; returns the parameters that came from it, and a report on all."""
    if bert is None:
        return [], {}
    filled = load_bert_weights(model, bert, allow_missing)
    if distributed.is_main_process():
        print_line(f"{bert}: {filled.lines()[0]}; each is named in {BERT_REPORT_FILE} beside the model")
    report = "".join(f"{line}\n" for line in filled.lines())
    return [model.get_parameter(name) for name in filled.filled], {BERT_REPORT_FILE: report.encode()}


def load_initial_weights(model: nn.Module, path: Path) -> None:
    """Copies the weights of another model of the same sizes.

    Raises:
        CheckpointError: There is no such model, or its sizes differ.
    """
    other = load_model(path)
    if other.config != getattr(model, "config", None):
        raise CheckpointError(f"{path} has other sizes than this model: {other.config} is not {model.config}")
    model.load_state_dict(other.state_dict())
