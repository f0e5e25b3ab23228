"""Training of a dual encoder: captions and images in a common space, by contrastive learning.

The text encoder is a BERT and the image features come from a frozen network (docs/systems/dual_encoder.md). With both
frozen only the two projection heads are trained (LiT, arXiv 2111.07991, locks the image network in the same way). That
suits data sets of hundreds to thousands of captions; docs/experiments/small_data_captions.md has measurements.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from comodal import distributed
from comodal.console import print_line
from comodal.data.captions.caption_dataset import CaptionDataset, MaskingConfig
from comodal.data.captions.caption_pairs import NegativeSampling
from comodal.data.captions.image_text_dataset import ImageTextDataset
from comodal.data.loader import Loader
from comodal.errors import CheckpointError, RecipeError, check_number
from comodal.flat_parameters import flatten_parameters
from comodal.models.checkpoint import load_model
from comodal.models.convert.convert_bert import derive_config_from_bert, load_bert_weights
from comodal.models.dual_encoder.dual_encoder import DualEncoder, DualEncoderConfig, ImagePooling
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.objectives.image_text_contrastive import ImageTextContrastive
from comodal.recipes.vilbert_options import CaptionLoading
from comodal.recipes.vilbert_pretraining import (
    BERT_REPORT_FILE,
    MatchedPairs,
    PretrainingData,
    load_pretraining_data,
    make_caption_validation_loader,
)
from comodal.tasks.vision_language.region_record import collect_region_record
from comodal.training.memory_limits import check_model_fits
from comodal.training.optimization import make_adamw, make_linear_schedule
from comodal.training.recipe_run import Run

MAX_PRECOMPUTED_CAPTIONS = 100_000  # whose frozen text features are computed once: 150 MB of 384, 300 MB of 768
FEATURE_BATCH_SIZE = 64  # captions of one length
BERT_ALONE = ViLBERTConfig(co_attention_layers=(), co_attention=False)


@dataclass(frozen=True)
class DualEncoderNetwork:
    """The network of a run.

    Args:
        text_encoder: frozen: the BERT keeps its weights; trained: it is trained too, by --backbone-lr-scale.
        image_pooling: Pools the regions of an image by their mean or by a learned attention.
        embedding_dim: Dimensions of the common space.
        head_dropout: Dropout before the projection heads.
        initial_temperature: Initial temperature of the contrastive loss.
        temperature: learned, as in CLIP, or fixed.
    """

    text_encoder: Literal["frozen", "trained"] = "frozen"
    image_pooling: ImagePooling = "mean"
    embedding_dim: int = 256
    head_dropout: float = 0.5
    initial_temperature: float = 0.07
    temperature: Literal["learned", "fixed"] = "learned"


@dataclass(frozen=True)
class DualEncoderSchedule:
    """The training schedule.

    Args:
        steps: Optimizer steps.
        batch_size: Captions in a step over all processes; each is compared with all others.
        learning_rate: Peak learning rate of AdamW.
        backbone_lr_scale: Learning rate scale of the BERT's weights, with --text-encoder trained.
        weight_decay: Weight decay of the weight matrices only.
        warmup_ratio: Fraction of the steps in which the learning rate rises linearly from 0; then it decays linearly.
    """

    steps: int = 200
    batch_size: int = 512
    learning_rate: float = 2e-3
    backbone_lr_scale: float = 0.01
    weight_decay: float = 0.1
    warmup_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_number("weight_decay", self.weight_decay, 0, math.inf)
        check_number("warmup_ratio", self.warmup_ratio, 0, 1)
        check_number("backbone_lr_scale", self.backbone_lr_scale, 0, math.inf)


SMALL_DATA_NETWORK, SMALL_DATA_SCHEDULE, DEFAULT_LOADING = DualEncoderNetwork(), DualEncoderSchedule(), CaptionLoading()


@flatten_parameters
def recipe(
    data: Path,
    captions: Path,
    bert: Path,
    start_from: Path | None = None,
    network: DualEncoderNetwork = SMALL_DATA_NETWORK,
    schedule: DualEncoderSchedule = SMALL_DATA_SCHEDULE,
    loading: CaptionLoading = DEFAULT_LOADING,
) -> Run:
    """Trains a dual encoder of captions and images by a contrastive loss with in-batch negatives.

    Args:
        data: Region store, as written by `comodal extract` or `comodal prepare regions`.
        captions: Any file that `comodal train vilbert` reads.
        bert: The folder of a Hugging Face BERT, the text encoder.
        start_from: Run or model folder of a dual encoder of the same sizes, whose weights initialize the model.
        network: The network.
        schedule: The steps, the batch size and the learning rate.
        loading: How captions and regions become batches.
        validation_pairs: Captions of held-out images, rounded up to whole batches; 0 for no validation.
        seed: Random seed of the initial weights and of the order.

    Examples:
        comodal train dual_encoder --data regions/ --captions captions.jsonl --bert minilm/ --out runs/dual
        torchrun --nproc-per-node 8 -m comodal train dual_encoder --data cc/ --captions cc.tsv --bert b/ --out runs/cc
    """
    pretraining_data = load_pretraining_data(data, captions, bert, loading)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loading.seed)
        model = build_dual_encoder(network, pretraining_data, bert)
    report = load_bert_weights(model, bert)
    check_caption_positions(model, loading.max_tokens)
    if start_from is not None:
        load_dual_encoder_weights(model, start_from)
    objective = ImageTextContrastive(model)
    make_dataset = partial(build_image_text_pairs, model, pretraining_data, captions, schedule.batch_size, loading)
    return Run(
        objective=objective,
        batches=Loader(make_dataset(pretraining_data.train, loading.seed), schedule.batch_size, loading.workers),
        validation=make_caption_validation_loader(
            make_dataset, pretraining_data.validation, schedule.batch_size, loading
        ),
        optimizer=make_adamw(
            objective,
            schedule.learning_rate,
            schedule.weight_decay,
            pretrained=[model.get_parameter(name) for name in report.filled],
            pretrained_lr_scale=schedule.backbone_lr_scale,
        ),
        learning_rate=make_linear_schedule(
            schedule.learning_rate, schedule.steps, round(schedule.warmup_ratio * schedule.steps)
        ),
        steps=schedule.steps,
        seed=loading.seed,
        fingerprint=pretraining_data.compute_fingerprint(),
        excluded=pretraining_data.skipped,
        validate_every=100,
        files={
            "tokenizer.json": pretraining_data.tokenizer.to_json(),
            BERT_REPORT_FILE: "".join(f"{line}\n" for line in report.format_lines()).encode(),
            **collect_region_record(pretraining_data.store, start_from),
        },
    )


def build_dual_encoder(network: DualEncoderNetwork, data: PretrainingData, bert: Path) -> DualEncoder:
    """A randomly initialized dual encoder with the sizes of a BERT, for the regions of a store."""
    sizes = derive_config_from_bert(bert, BERT_ALONE)
    if data.tokenizer.size > sizes.vocabulary:
        raise RecipeError(
            f"{bert}: its vocabulary has {data.tokenizer.size:,} tokens, its weights {sizes.vocabulary:,}"
        )
    config = DualEncoderConfig(
        text=sizes.text,
        vocabulary=sizes.vocabulary,
        positions=sizes.positions,
        first_position=sizes.first_position,
        num_token_types=sizes.num_token_types,
        region_feature_dim=data.store.dim,
        embedding_dim=network.embedding_dim,
        image_pooling=network.image_pooling,
        head_dropout=network.head_dropout,
        initial_temperature=network.initial_temperature,
        is_temperature_learned=network.temperature == "learned",
        is_text_frozen=network.text_encoder == "frozen",
    )
    check_model_fits(lambda: DualEncoder(config))
    return DualEncoder(config)


def check_caption_positions(model: DualEncoder, max_tokens: int) -> None:
    """Raises a RecipeError if captions could have more tokens than the BERT has positions."""
    max_positions = model.config.positions - model.config.first_position
    if max_tokens > max_positions:
        raise RecipeError(f"--max-tokens {max_tokens}: this BERT has positions for {max_positions} tokens")


def load_dual_encoder_weights(model: DualEncoder, path: Path) -> None:
    """Copies the weights of another dual encoder of the same configuration.

    Raises:
        CheckpointError: There is no dual encoder, or its configuration differs.
    """
    initial = load_model(path)
    if not isinstance(initial, DualEncoder) or initial.config != model.config:
        raise CheckpointError(
            f"{path} holds no dual encoder of this configuration: {initial.config}, not {model.config}"
        )
    model.load_state_dict(initial.state_dict())


def build_image_text_pairs(
    model: DualEncoder,
    data: PretrainingData,
    captions: Path,
    batch_size: int,
    loading: CaptionLoading,
    chosen: MatchedPairs,
    seed: int,
) -> ImageTextDataset:
    """The pairs of one split; reports how many captions are truncated."""
    lengths = loading.max_tokens, loading.max_regions
    masking, negatives = MaskingConfig(token_probability=0.0, region_probability=0.0), NegativeSampling(0.0)
    made = CaptionDataset(chosen, data.store, data.tokenizer, seed, batch_size, *lengths, masking, negatives)
    if made.num_truncated and distributed.is_main_process():
        cut = f"{made.num_truncated:,} of {len(made):,} captions have more than {loading.max_tokens} tokens"
        print_line(f"{captions}: {cut} and are truncated (--max-tokens)")
    if model.config.is_text_frozen and len(made) <= MAX_PRECOMPUTED_CAPTIONS:
        return ImageTextDataset(made, compute_caption_features(model, made))
    return ImageTextDataset(made, torch.empty(len(made), 0))


@torch.no_grad()
def compute_caption_features(model: DualEncoder, dataset: CaptionDataset) -> Float[Tensor, "captions features"]:
    """The text features of all captions, in batches of one length, so that they do not depend on padding."""
    features = torch.empty(len(dataset), model.config.text.dim)
    lengths = torch.from_numpy(dataset.encoded.lengths)
    model.eval()
    for length in lengths.unique().tolist():
        for captions in (lengths == length).nonzero().flatten().split(FEATURE_BATCH_SIZE):
            starts = torch.from_numpy(dataset.starts)[captions]
            positions = (starts[:, None] + torch.arange(length)).numpy()
            token_ids = torch.from_numpy(dataset.encoded.token_ids[positions]).long()
            features[captions] = model.compute_text_features(token_ids, None)
    model.train()
    return features
