"""Training of a dual encoder: captions and images in a common space, by contrastive learning.

The text encoder is a BERT. Image features come from a region store of a frozen network, or from image files by an image
network that is frozen or trained (docs/systems/dual_encoder.md). With frozen networks only the two projection heads are
trained (LiT, arXiv 2111.07991, locks the image network in the same way). That suits data sets of hundreds to thousands
of captions; docs/experiments/small_data_captions.md has measurements.
"""

import math
from collections.abc import Sequence
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
from comodal.data.captions.caption_image_dataset import NO_AUGMENTATION, CaptionImageDataset, ImageAugmentation
from comodal.data.captions.caption_pairs import NegativeSampling
from comodal.data.captions.image_text_dataset import ImageTextDataset
from comodal.data.loader import Loader
from comodal.errors import CheckpointError, RecipeError, check_number
from comodal.flat_parameters import flatten_parameters
from comodal.models.checkpoint import load_model
from comodal.models.convert.convert_bert import derive_config_from_bert, load_bert_weights
from comodal.models.dual_encoder.dual_encoder import DualEncoder, DualEncoderConfig, ImagePooling
from comodal.models.dual_encoder.image_backbones import build_image_backbone
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.objectives.image_text_contrastive import ImageTextContrastive
from comodal.recipes.dual_encoder_images import (
    CaptionedImages,
    ImageNetwork,
    compute_frozen_image_features,
    load_captioned_images,
)
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

MAX_PRECOMPUTED = 100_000  # captions or images whose frozen features are computed once: 150 MB of 384, 500 MB of 1,280
FEATURE_BATCH_SIZE = 64  # captions of one length
BERT_ALONE = ViLBERTConfig(co_attention_layers=(), co_attention=False)


@dataclass(frozen=True)
class DualEncoderNetwork:
    """The network of a run.

    Args:
        text_encoder: frozen: the BERT keeps its weights; trained: it is trained too, by --backbone-lr-scale.
        image_pooling: With --data, pools the regions of an image by their mean or by a learned attention.
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
        backbone_lr_scale: Learning rate scale of pretrained weights, with --text-encoder or --image-encoder trained.
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


REGIONS_ONLY = ImageNetwork()
SMALL_DATA_NETWORK, SMALL_DATA_SCHEDULE, DEFAULT_LOADING = DualEncoderNetwork(), DualEncoderSchedule(), CaptionLoading()


@flatten_parameters
def recipe(
    captions: Path,
    bert: Path,
    data: Path | None = None,
    image_network: ImageNetwork = REGIONS_ONLY,
    start_from: Path | None = None,
    network: DualEncoderNetwork = SMALL_DATA_NETWORK,
    schedule: DualEncoderSchedule = SMALL_DATA_SCHEDULE,
    augmentation: ImageAugmentation = NO_AUGMENTATION,
    loading: CaptionLoading = DEFAULT_LOADING,
) -> Run:
    """Trains a dual encoder of captions and images by a contrastive loss with in-batch negatives.

    Features of frozen networks are computed once, before the first step: those of the captions, and with --images and
    without augmentation those of the images.

    Args:
        captions: Any file that `comodal train vilbert` reads.
        bert: The folder of a Hugging Face BERT, the text encoder.
        data: Region store, as written by `comodal extract` or `comodal prepare regions`; or give --images.
        image_network: The image network, for --images.
        start_from: Run or model folder of a dual encoder of the same sizes, whose weights initialize the model.
        network: The network.
        schedule: The steps, the batch size and the learning rate.
        augmentation: Random changes of images, for --images.
        loading: How captions and images become batches.
        validation_pairs: Captions of held-out images, rounded up to whole batches; 0 for no validation.
        seed: Random seed of the initial weights, of the order and of the augmentation.

    Examples:
        comodal train dual_encoder --data regions/ --captions captions.jsonl --bert minilm/ --out runs/dual
        comodal train dual_encoder --images photos/ --captions captions.jsonl --bert minilm/ --out runs/dual
        comodal train dual_encoder --images photos/ --captions c.tsv --bert b/ --image-encoder trained --out runs/tuned
        torchrun --nproc-per-node 8 -m comodal train dual_encoder --data cc/ --captions cc.tsv --bert b/ --out runs/cc
    """
    image_network.check(data, augmentation)
    source: PretrainingData | CaptionedImages
    if image_network.images is not None:
        source = load_captioned_images(image_network.images, captions, bert, loading)
    else:
        assert data is not None
        source = load_pretraining_data(data, captions, bert, loading)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loading.seed)
        model = build_dual_encoder(network, image_network, source, bert)
    report = load_bert_weights(model, bert)
    pretrained = [model.get_parameter(name) for name in report.filled]
    if model.image_tower is not None and image_network.image_weights == "pretrained":
        model.image_tower.load_pretrained_weights()
        pretrained += model.image_tower.parameters()
    check_caption_positions(model, loading.max_tokens)
    if start_from is not None:
        load_dual_encoder_weights(model, start_from)
    objective = ImageTextContrastive(model)
    datasets: list[ImageTextDataset | CaptionImageDataset] = []

    def make_dataset(chosen: MatchedPairs, seed: int) -> ImageTextDataset | CaptionImageDataset:
        changes = augmentation if chosen is source.train else NO_AUGMENTATION
        datasets.append(build_image_text_pairs(model, source, schedule.batch_size, loading, changes, chosen, seed))
        report_truncated(captions, datasets[-1], loading)
        return datasets[-1]

    return Run(
        objective=objective,
        batches=Loader(make_dataset(source.train, loading.seed), schedule.batch_size, loading.workers),
        validation=make_caption_validation_loader(make_dataset, source.validation, schedule.batch_size, loading),
        optimizer=make_adamw(
            objective,
            schedule.learning_rate,
            schedule.weight_decay,
            pretrained=pretrained,
            pretrained_lr_scale=schedule.backbone_lr_scale,
        ),
        learning_rate=make_linear_schedule(
            schedule.learning_rate, schedule.steps, round(schedule.warmup_ratio * schedule.steps)
        ),
        steps=schedule.steps,
        seed=loading.seed,
        fingerprint=source.compute_fingerprint(),
        excluded=source.skipped,
        validate_every=100,
        files={
            "tokenizer.json": source.tokenizer.to_json(),
            BERT_REPORT_FILE: "".join(f"{line}\n" for line in report.format_lines()).encode(),
            **({} if isinstance(source, CaptionedImages) else collect_region_record(source.store, start_from)),
        },
        prepare=partial(compute_frozen_features, model, datasets),
    )


def build_dual_encoder(
    network: DualEncoderNetwork, image_network: ImageNetwork, data: PretrainingData | CaptionedImages, bert: Path
) -> DualEncoder:
    """A randomly initialized dual encoder with the sizes of a BERT, for the regions of a store or for image files."""
    sizes = derive_config_from_bert(bert, BERT_ALONE)
    if data.tokenizer.size > sizes.vocabulary:
        raise RecipeError(
            f"{bert}: its vocabulary has {data.tokenizer.size:,} tokens, its weights {sizes.vocabulary:,}"
        )
    if isinstance(data, CaptionedImages):
        backbone = image_network.image_backbone
        feature_dim = build_image_backbone(backbone).num_features
    else:
        backbone, feature_dim = "", data.store.dim
    config = DualEncoderConfig(
        text=sizes.text,
        vocabulary=sizes.vocabulary,
        positions=sizes.positions,
        first_position=sizes.first_position,
        num_token_types=sizes.num_token_types,
        region_feature_dim=feature_dim,
        embedding_dim=network.embedding_dim,
        image_pooling=network.image_pooling,
        head_dropout=network.head_dropout,
        initial_temperature=network.initial_temperature,
        is_temperature_learned=network.temperature == "learned",
        is_text_frozen=network.text_encoder == "frozen",
        image_backbone=backbone,
        image_size=image_network.image_size,
        is_image_frozen=image_network.image_encoder == "frozen",
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
    data: PretrainingData | CaptionedImages,
    batch_size: int,
    loading: CaptionLoading,
    augmentation: ImageAugmentation,
    chosen: MatchedPairs,
    seed: int,
) -> ImageTextDataset | CaptionImageDataset:
    """The pairs of one split."""
    if isinstance(data, CaptionedImages):
        inputs = data.folder, data.names, data.tokenizer, seed, batch_size
        return CaptionImageDataset(chosen, *inputs, loading.max_tokens, model.config.image_size, augmentation)
    lengths = loading.max_tokens, loading.max_regions
    masking, negatives = MaskingConfig(token_probability=0.0, region_probability=0.0), NegativeSampling(0.0)
    return ImageTextDataset(
        CaptionDataset(chosen, data.store, data.tokenizer, seed, batch_size, *lengths, masking, negatives)
    )


def report_truncated(captions: Path, dataset: ImageTextDataset | CaptionImageDataset, loading: CaptionLoading) -> None:
    """Reports how many captions are truncated."""
    if dataset.num_truncated and distributed.is_main_process():
        cut = f"{dataset.num_truncated:,} of {len(dataset):,} captions have more than {loading.max_tokens} tokens"
        print_line(f"{captions}: {cut} and are truncated (--max-tokens)")


def compute_frozen_features(
    model: DualEncoder, datasets: Sequence[ImageTextDataset | CaptionImageDataset], device: torch.device
) -> None:
    """Fills in the features of frozen encoders, which do not change in training, on the device of the model.

    Those of more than MAX_PRECOMPUTED captions or images, and those of augmented images, are computed in every step.
    """
    for dataset in datasets:
        if model.config.is_text_frozen and len(dataset) <= MAX_PRECOMPUTED:
            dataset.text_features = compute_caption_features(model, dataset, device)
        if (
            isinstance(dataset, CaptionImageDataset)
            and model.config.is_image_frozen
            and dataset.augmentation.is_none
            and len(dataset.names) <= MAX_PRECOMPUTED
        ):
            dataset.image_features = compute_frozen_image_features(model, dataset, device)


@torch.no_grad()
def compute_caption_features(
    model: DualEncoder, dataset: ImageTextDataset | CaptionImageDataset, device: torch.device
) -> Float[Tensor, "captions features"]:
    """The text features of all captions, in batches of one length, so that they do not depend on padding."""
    features = torch.empty(len(dataset), model.config.text.dim)
    lengths, starts = torch.from_numpy(dataset.encoded.lengths), torch.from_numpy(dataset.starts)
    is_training = model.training
    model.eval()
    for length in lengths.unique().tolist():
        for captions in (lengths == length).nonzero().flatten().split(FEATURE_BATCH_SIZE):
            positions = (starts[captions][:, None] + torch.arange(length)).numpy()
            token_ids = torch.from_numpy(dataset.encoded.token_ids[positions]).long().to(device)
            features[captions] = model.compute_text_features(token_ids, None).float().cpu()
    model.train(is_training)
    return features
