"""Pretraining of ViLBERT: masked tokens, masked regions and image-text alignment (Lu et al., NeurIPS 2019).

The paper, section 3.2: Conceptual Captions (3.1 million pairs), a pretrained BERT-base, batches of 512 on 8 GPUs, Adam
with a learning rate of 1e-4, linear warmup and decay, 10 epochs, and all losses of equal weight. Its zero-shot
retrieval on Flickr30k (1,000 images) has a recall@1 of 31.86 %.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from comodal import distributed
from comodal.console import print_line
from comodal.data.batch import TokenInput
from comodal.data.captions.caption_dataset import CaptionDataset, MaskingConfig
from comodal.data.captions.caption_files import Caption, read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.data.captions.caption_pairs import NegativeSampling
from comodal.data.captions.masking import MASKING_PROBABILITY
from comodal.data.loader import Loader, Samples, round_up_to_batches
from comodal.data.regions.region_store import RegionStore
from comodal.data.sources.splits import hash_to_fraction
from comodal.errors import CheckpointError, DataError, RecipeError
from comodal.flat_parameters import flatten_parameters
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import load_model
from comodal.models.convert.backbone_variants import RegionSizes, build_backbone_config
from comodal.models.convert.convert_bert import load_bert_weights
from comodal.models.vilbert.single_stream import SingleStreamConfig
from comodal.models.vilbert.task_model import build_backbone
from comodal.models.vilbert.vilbert_config import StreamConfig, ViLBERTConfig
from comodal.objectives.masked import RegionTarget
from comodal.objectives.pretraining import ViLBERTPretraining, count_target_columns
from comodal.recipes.vilbert_options import (
    CaptionLoading,
    InitialState,
    PretextTasks,
    ViLBERTNetwork,
    ViLBERTSchedule,
)
from comodal.tasks.vision_language.region_record import collect_region_record
from comodal.training.memory_limits import check_model_fits
from comodal.training.optimization import make_adamw, make_linear_schedule
from comodal.training.recipe_run import Run, VariantDefaults

BERT_REPORT_FILE = "bert.txt"  # which weights came from the BERT, which are new, and which of the BERT's were not used


PAPER_VILBERT_DEFAULTS = VariantDefaults(60_000, 512, 1e-4, 500)
SMALL_VILBERT_DEFAULTS = VariantDefaults(3_000, 64, 1e-3, 250)  # the demo's learning rate and batch size
CONTRASTIVE_DIM = 128
VILBERT_VALIDATION_SEED_OFFSET = 1  # separates the random state of the validation pairs from that of the training pairs
MatchedPairs = list[tuple[Caption, int]]


@dataclass(frozen=True)
class PretrainingData:
    """The captions, the region store and the vocabulary."""

    store: RegionStore
    tokenizer: WordPieceTokenizer
    train: MatchedPairs
    validation: MatchedPairs
    skipped: Counter[str]  # number of captions that are not used, by reason

    def compute_fingerprint(self) -> str:
        """The fingerprint of everything that training reads."""
        digest = hashlib.sha256(self.store.fingerprint.encode() + self.tokenizer.to_json())
        for caption, row in [*self.train, *self.validation]:
            digest.update(f"{row} {caption.caption}\n".encode())
        return digest.hexdigest()[:16]


BASE_NETWORK, RANDOM_STATE, PAPER_TASKS = ViLBERTNetwork(), InitialState(), PretextTasks()
PAPER_SCHEDULE, DEFAULT_LOADING = ViLBERTSchedule(), CaptionLoading()


@flatten_parameters
def recipe(
    data: Path,
    captions: Path,
    initial: InitialState = RANDOM_STATE,
    network: ViLBERTNetwork = BASE_NETWORK,
    tasks: PretextTasks = PAPER_TASKS,
    schedule: ViLBERTSchedule = PAPER_SCHEDULE,
    loading: CaptionLoading = DEFAULT_LOADING,
) -> Run:
    """Pretrains ViLBERT on images with captions: masked tokens, masked regions and image-text alignment.

    Args:
        data: Region store, as written by `comodal prepare regions`.
        captions: Conceptual Captions TSV, Karpathy's or COCO's JSON, CSV, Parquet, JSON Lines, a folder with name.txt
            for each name.jpg, or tar shards, Parquet or Arrow files with the images (a folder, one file, or a glob
            pattern).
        initial: Where the weights and the vocabulary come from.
        network: The network.
        tasks: What is masked, and which pairs are mismatched.
        schedule: The steps, the batch size and the learning rate.
        loading: How captions and regions become batches.

    Examples:
        comodal train vilbert --data regions/ --captions captions.jsonl --bert bert-base-uncased/ --out runs/first
        torchrun --nproc-per-node 8 -m comodal train vilbert --data cc/ --captions cc.tsv --bert bert/ --out runs/cc
    """
    chosen = schedule.fill(SMALL_VILBERT_DEFAULTS if network.is_small else PAPER_VILBERT_DEFAULTS)
    pretraining_data = load_pretraining_data(data, captions, initial.vocabulary or initial.bert, loading)
    targets = choose_region_targets(tasks.region_targets, pretraining_data.store)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loading.seed)
        model = build_pretraining_model(network, pretraining_data, targets, initial.bert)
    check_caption_length(model, loading.max_tokens)
    pretrained, report = load_text_stream(model, initial.bert, initial.allow_missing)
    if initial.start_from is not None:
        load_initial_weights(model, initial.start_from)
    tasks.check()
    make_dataset = partial(build_caption_pairs, pretraining_data, captions, tasks, chosen.batch_size, loading)
    contrastive_weight = network.contrastive_weight
    objective = ViLBERTPretraining(
        model, targets, *tasks.weights, contrastive_weight=contrastive_weight, seed=loading.seed
    )
    rate, region_record = chosen.learning_rate, collect_region_record(pretraining_data.store, initial.start_from)
    return Run(
        objective=objective,
        batches=Loader(make_dataset(pretraining_data.train, loading.seed), chosen.batch_size, loading.workers),
        validation=make_caption_validation_loader(
            make_dataset, pretraining_data.validation, chosen.batch_size, loading
        ),
        optimizer=make_adamw(
            objective,
            rate,
            schedule.weight_decay,
            pretrained=pretrained,
            pretrained_lr_scale=schedule.backbone_lr_scale,
        ),
        learning_rate=make_linear_schedule(rate, chosen.steps, round(schedule.warmup_ratio * chosen.steps)),
        steps=chosen.steps,
        seed=loading.seed,
        fingerprint=pretraining_data.compute_fingerprint(),
        excluded=pretraining_data.skipped,
        resolved=chosen.list_parameters(),
        validate_every=chosen.validate_every,
        files={"tokenizer.json": pretraining_data.tokenizer.to_json(), **report, **region_record},
    )


def build_caption_pairs(
    material: PretrainingData,
    captions: Path,
    tasks: PretextTasks,
    batch_size: int,
    loading: CaptionLoading,
    chosen: MatchedPairs,
    seed: int,
) -> CaptionDataset:
    """The pairs of one split, masked; reports how many captions are truncated."""
    masking = MaskingConfig(
        token_probability=MASKING_PROBABILITY if tasks.token_weight else 0.0,
        region_probability=MASKING_PROBABILITY if tasks.region_weight else 0.0,
        overlap_threshold=tasks.overlap,
        mask_loss_on_mismatched=tasks.mask_loss_on_mismatched,
        faithful=tasks.faithful,
    )
    replaced, fraction = "caption" if tasks.faithful else tasks.negatives, 0.5 if tasks.alignment_weight else 0.0
    negatives = NegativeSampling(fraction, replaced, exclude_same_image=not tasks.faithful)
    lengths = loading.max_tokens, loading.max_regions
    made = CaptionDataset(chosen, material.store, material.tokenizer, seed, batch_size, *lengths, masking, negatives)
    if made.num_truncated and distributed.is_main_process():
        cut = f"{made.num_truncated:,} of {len(made):,} captions have more than {loading.max_tokens} tokens"
        print_line(f"{captions}: {cut} and are truncated (--max-tokens)")
    return made


def make_caption_validation_loader(
    pairs: Callable[[MatchedPairs, int], Samples], held_out: MatchedPairs, batch_size: int,
    loading: CaptionLoading,
) -> Loader | None:  # fmt: skip
    """The fixed pairs of validation, in whole batches; None without validation."""
    if not loading.validation_pairs or not held_out:
        return None
    length = round_up_to_batches(loading.validation_pairs, batch_size)
    return Loader(pairs(held_out, loading.seed + VILBERT_VALIDATION_SEED_OFFSET), batch_size, loading.workers, length)


def load_pretraining_data(
    data: Path, captions: Path, vocabulary: Path | None, loading: CaptionLoading
) -> PretrainingData:
    """Returns the captions whose image is in the store, split, and the vocabulary.

    Raises:
        DataError: A file is missing or damaged, or captions and store do not match.
    """
    store = RegionStore(data)
    empty = int((store.counts == 0).sum())
    images = f"{len(store):,} images" + (f" ({empty:,} without regions)" if empty else "")
    parts, skipped = split_captions(captions, data, store.ids, images, loading)
    tokenizer = (
        WordPieceTokenizer.read(vocabulary)
        if vocabulary
        else WordPieceTokenizer.from_texts(caption.caption for caption, _ in parts["train"])
    )
    return PretrainingData(store, tokenizer, parts["train"], parts["validation"], skipped)


def split_captions(
    captions: Path, data: Path, image_ids: Sequence[str], images: str, loading: CaptionLoading
) -> tuple[dict[str, MatchedPairs], Counter[str]]:
    """The captions of each split, each with the index of its image, and the number of skipped ones by reason.

    Args:
        captions: The file.
        data: Of the images, for messages.
        image_ids: The id of each image.
        images: The images, described for messages.
        loading: The fractions of the splits.

    Raises:
        DataError: The file is damaged, or no training caption matches an image.
    """
    caption_file = read_captions(captions)
    matched = match_captions(caption_file, image_ids)
    parts = split_matched_captions(matched.pairs, image_ids, loading.validation_fraction, 0.0)
    parts["train"] = select_data_fraction(parts["train"], image_ids, loading.data_fraction)
    if distributed.is_main_process():
        counts = ", ".join(f"{len(pairs):,} {split}" for split, pairs in parts.items() if pairs)
        reasons = matched.format_skipped(caption_file.refused)
        print_line(f"{captions} ({caption_file.layout}): captions of {images}, {counts}{reasons}")
    if not parts["train"]:
        subset = f" (--data-fraction {loading.data_fraction:g})" if loading.data_fraction < 1 else ""
        raise DataError(f"{captions}: no training caption matches an image of {data}{subset}")
    if parts["validation"] and len({row for _, row in parts["validation"]}) == 1:  # a mismatched pair needs two
        parts["validation"] = []
        if distributed.is_main_process():
            print_line(f"{captions}: no validation, since it would have one image only; increase --validation-fraction")
    return parts, matched.count_skipped(caption_file.refused)


def select_data_fraction(pairs: MatchedPairs, store_ids: Sequence[str], fraction: float) -> MatchedPairs:
    """The captions of a fraction of the images, chosen by a hash of their ids, so that fractions are nested."""
    if fraction == 1:
        return pairs
    return [(caption, row) for caption, row in pairs if hash_to_fraction(f"subset {store_ids[row]}") < fraction]


def choose_region_targets(requested: Sequence[str] | None, store: RegionStore) -> list[RegionTarget]:
    """Returns the targets of masked regions, which the store must have."""
    available = {"classes": store.classes > 0, "tokens": store.tokens > 0, "features": True, "contrast": True}
    for target in requested or ():
        if target not in available:
            raise ValueError(f"unknown region target {target!r}; there are {', '.join(available)}")
        if not available[target]:
            raise DataError(f"{store.folder} has no {target}: `comodal prepare tokens {store.folder}` creates them")
    chosen = list(requested or [next(target for target, is_available in available.items() if is_available)])
    return cast(list[RegionTarget], chosen)


def build_pretraining_model(
    network: ViLBERTNetwork, data: PretrainingData, targets: Sequence[RegionTarget], bert: Path | None
) -> nn.Module:
    """Returns a randomly initialized model of the right sizes."""
    uses_visual_tokens = network.regions_as == "tokens"
    store, vocabulary = data.store, data.tokenizer.size
    if uses_visual_tokens and not store.tokens:
        raise DataError(f"{store.folder} has no visual tokens: `comodal prepare tokens {store.folder}` creates them")
    columns = sum(count_target_columns(targets, store.dim, store.classes, store.tokens).values())
    sizes = RegionSizes(store.dim, columns, store.tokens + len(TokenInput) if uses_visual_tokens else 0)
    config = build_backbone_config(network.variant, bert, vocabulary, sizes)
    if vocabulary > config.vocabulary:
        raise RecipeError(f"--vocabulary has {vocabulary:,} tokens, the BERT {config.vocabulary:,}: they do not match")
    config = replace(config, text=replace_dropout(config.text, network.dropout))
    if isinstance(config, ViLBERTConfig):
        contrastive_dim = CONTRASTIVE_DIM if network.contrastive_weight else 0
        config = replace(
            config,
            vision=replace_dropout(config.vision, network.dropout),
            co_attention=not network.without_co_attention,
            contrastive_dim=contrastive_dim,
        )
    check_model_fits(lambda: build_backbone(config))
    return build_backbone(config)


def replace_dropout(stream: StreamConfig, dropout: float | None) -> StreamConfig:
    """The sizes of a stream with another dropout; None keeps its own."""
    return stream if dropout is None else replace(stream, dropout=dropout, attention_dropout=dropout)


def check_caption_length(model: nn.Module, max_tokens: int) -> None:
    """Raises a RecipeError if captions could have more tokens than the model has positions."""
    config = cast(ViLBERTConfig | SingleStreamConfig, model.config)
    max_positions = config.positions - config.first_position
    if max_tokens > max_positions:
        raise RecipeError(f"--max-tokens {max_tokens}: this model has positions for {max_positions} tokens")


def load_text_stream(
    model: nn.Module, bert: Path | None, allow_missing: bool
) -> tuple[list[nn.Parameter], dict[str, bytes]]:
    """Initializes the text stream from a BERT; returns the parameters that came from it, and a report on all."""
    if bert is None:
        return [], {}
    load_report = load_bert_weights(model, bert, allow_missing)
    if distributed.is_main_process():
        print_line(f"{bert}: {load_report.format_lines()[0]}; {BERT_REPORT_FILE} next to the model lists them")
    report = "".join(f"{line}\n" for line in load_report.format_lines())
    return [model.get_parameter(name) for name in load_report.filled], {BERT_REPORT_FILE: report.encode()}


def load_initial_weights(model: nn.Module, path: Path) -> None:
    """Copies the weights of another model of the same sizes.

    Raises:
        CheckpointError: There is no such model, or its sizes differ.
    """
    initial = load_model(path)
    if initial.config != getattr(model, "config", None):
        raise CheckpointError(
            f"{path} has another configuration than this model: {initial.config} is not {model.config}"
        )
    model.load_state_dict(initial.state_dict())
