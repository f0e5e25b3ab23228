"""Pretraining of ViLBERT: masked tokens, masked regions and image-text alignment (Lu et al., NeurIPS 2019).

The paper, section 3.2: Conceptual Captions (3.1 million pairs), a pretrained BERT-base, batches of 512 on 8 GPUs, Adam
with a learning rate of 1e-4, linear warmup and decay, 10 epochs, and all losses of equal weight. Its zero-shot
retrieval on Flickr30k (1,000 images) has a recall@1 of 31.86 %.
"""

import hashlib
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
from comodal.data.loader import Loader
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError, RecipeError
from comodal.flat_parameters import flatten_parameters
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

VILBERT_VARIANTS = {f"base_{count}": make_base_config(count) for count in (2, 4, 6, 8)} | {
    f"large_{n}": make_large_config(n) for n in (2, 4, 6)
}
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
    words: WordPieceTokenizer
    train: MatchedPairs
    validation: MatchedPairs

    def fingerprint(self) -> str:
        """The fingerprint of everything that training reads."""
        digest = hashlib.sha256(self.store.fingerprint.encode() + self.words.as_json())
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
        schedule: How long and how fast.
        loading: How captions and regions become batches.

    Examples:
        comodal train vilbert --data regions/ --captions captions.jsonl --bert bert-base-uncased/ --out runs/first
        torchrun --nproc_per_node 8 -m comodal train vilbert --data cc/ --captions cc.tsv --bert bert/ --out runs/cc
    """
    chosen = schedule.fill(SMALL_VILBERT_DEFAULTS if network.is_small else PAPER_VILBERT_DEFAULTS)
    material = gather_pretraining_data(data, captions, initial.words or initial.bert, loading.validation_share)
    targets = choose_region_targets(tasks.region_targets, material.store)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loading.seed)
        model = build_pretraining_model(network, material, targets, initial.bert)
    check_caption_length(model, loading.max_words)
    pretrained, report = fill_text_stream(model, initial.bert, initial.allow_missing)
    if initial.start_from is not None:
        load_initial_weights(model, initial.start_from)
    tasks.check()
    pairs = partial(build_caption_pairs, material, captions, tasks, chosen.batch_size, loading)
    objective = ViLBERTPretraining(model, targets, contrastive_weight=network.contrastive_weight, seed=loading.seed)
    rate, region_record = chosen.learning_rate, collect_region_record(material.store, initial.start_from)
    return Run(
        objective=objective,
        batches=Loader(pairs(material.train, loading.seed), chosen.batch_size, loading.workers),
        validation=make_validation_loader(pairs, material.validation, chosen.batch_size, loading),
        optimizer=make_adamw(
            objective, rate, schedule.weight_decay, pretrained=pretrained, pretrained_share=schedule.pretrained_rate
        ),
        learning_rate=make_linear_schedule(rate, chosen.steps, round(schedule.warm_up * chosen.steps)),
        steps=chosen.steps,
        seed=loading.seed,
        fingerprint=material.fingerprint(),
        resolved=chosen.list_parameters(),
        validate_every=chosen.validate_every,
        files={"tokenizer.json": material.words.as_json(), **report, **region_record},
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
    masking = MaskingConfig(overlap=tasks.overlap, tell_mismatched=tasks.tell_mismatched, faithful=tasks.faithful)
    replaced = "caption" if tasks.faithful else tasks.replaced
    negatives = NegativeSampling(replaced=replaced, other_image=not tasks.faithful)
    lengths = loading.max_words, loading.max_regions
    made = CaptionDataset(chosen, material.store, material.words, seed, batch_size, *lengths, masking, negatives)
    if made.truncated and distributed.is_main_process():
        cut = f"{made.truncated:,} of {len(made):,} captions have more than {loading.max_words} word pieces"
        print_line(f"{captions}: {cut} and lose their end (--max_words)")
    return made


def make_validation_loader(
    pairs: Callable[[MatchedPairs, int], CaptionDataset], held_out: MatchedPairs, batch_size: int,
    loading: CaptionLoading,
) -> Loader | None:  # fmt: skip
    """The fixed pairs of validation, in whole batches; None without validation."""
    if not loading.validation_pairs or not held_out:
        return None
    length = -(-loading.validation_pairs // batch_size) * batch_size
    return Loader(pairs(held_out, loading.seed + VILBERT_VALIDATION_SEED_OFFSET), batch_size, loading.workers, length)


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
    network: ViLBERTNetwork, material: PretrainingData, targets: Sequence[RegionTarget], bert: Path | None
) -> nn.Module:
    """Returns a randomly initialized model of the right sizes."""
    is_single_stream, tokens = network.variant == "single_stream", network.regions_as == "tokens"
    if network.contrastive_weight and is_single_stream:
        raise ValueError("--variant single_stream has no encoders of one modality: leave out --contrastive-weight")
    store, vocabulary = material.store, material.words.size
    inputs = store.tokens + len(TokenInput)
    if (tokens or is_single_stream) and not store.tokens:
        raise DataError(f"{store.folder} has no visual tokens: `comodal prepare tokens {store.folder}` makes them")
    columns = sum(count_target_columns(targets, store.dim, store.classes, store.tokens).values())
    config = make_small_vilbert_config() if network.is_small else VILBERT_VARIANTS[network.variant]
    config = derive_config_from_bert(bert, like=config) if bert else replace(config, vocabulary=vocabulary)
    if vocabulary > config.vocabulary:
        raise RecipeError(
            f"--words has {vocabulary:,} pieces, the BERT {config.vocabulary:,}: they do not fit together"
        )
    if (dropout := network.dropout) is not None:
        text, vision = (
            replace(stream, dropout=dropout, attention_dropout=dropout) for stream in (config.text, config.vision)
        )
        config = replace(config, text=text, vision=vision)
    if is_single_stream:
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
        contrastive_dim=CONTRASTIVE_DIM if network.contrastive_weight else 0,
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
