"""Fine-tuning and evaluating a ViLBERT, or its single-stream baseline, on a task (ViLBERT, section 3.3).

Every task trains the whole network and a head with AdamW. A head of the model with the same layers (and answers) goes
on training, as in 12-in-1; otherwise the head is new. As in facebookresearch/vilbert-multi-task, the learning rate of
the head is 1e-4 (a head on regions has the task's learning rate), and that of the pretrained layers is the task's. It
rises linearly over a tenth of the steps, then decays linearly.
With validation examples, the model has the weights of the best validation score. Departs from the original: the
learning rate has no steps at epochs 5 and 7, and nothing is selected on a test split.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.data.batch import TaskBatch, TokenInput
from comodal.data.loader import Loader
from comodal.data.regions.region_compatibility import check_same_regions
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError
from comodal.hardware import Compute, ComputeOptions
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import find_model_folder, load_model, make_untrained_copy
from comodal.models.convert.backbone_variants import ViLBERTVariant
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig, load_task_model
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.progress import track_progress
from comodal.tasks.evaluation.metrics import check_finite_scores
from comodal.tasks.evaluation.results_card import hash_card_file
from comodal.tasks.vision_language.bert_start import build_network_from_bert
from comodal.tasks.vision_language.continued_heads import continue_heads
from comodal.tasks.vision_language.region_record import collect_region_record
from comodal.tasks.vision_language.task_tokens import choose_task_token
from comodal.tasks.vision_language.text_image_examples import (
    Ablation,
    ExampleSource,
    FixedExamples,
    TaskDataset,
    TaskExample,
)
from comodal.training.optimization import make_adamw, make_linear_schedule
from comodal.training.recipe_run import FineTuneConfig, Run

HEAD_LEARNING_RATE = 1e-4
VILBERT_WEIGHT_DECAY = 0.01
VILBERT_WARMUP_RATIO = 0.1


class LossOutput(NamedTuple):
    """The loss of a batch, and its accuracy."""

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def compute_soft_answer_loss(scores: Float[Tensor, "rows answers"], batch: TaskBatch) -> LossOutput:
    """Binary cross-entropy against soft scores, summed over the answers (VQA)."""
    loss = F.binary_cross_entropy_with_logits(scores, batch.targets) * scores.shape[1]
    return LossOutput(loss, batch.targets.gather(1, scores.argmax(1, keepdim=True)).mean())


def compute_class_loss(scores: Float[Tensor, "rows classes"], batch: TaskBatch) -> LossOutput:
    """Cross-entropy over classes (entailment, NLVR2)."""
    return LossOutput(F.cross_entropy(scores, batch.targets), (scores.argmax(1) == batch.targets).float().mean())


def compute_choice_loss(scores: Float[Tensor, "texts 1"], batch: TaskBatch) -> LossOutput:
    """Cross-entropy over the texts (or images) of each example (VCR, retrieval)."""
    return compute_class_loss(scores.view(len(batch.targets), -1), batch)


def compute_region_loss(scores: Float[Tensor, "texts regions"], batch: TaskBatch) -> LossOutput:
    """Binary cross-entropy over the valid regions of an image, summed over the regions (referring expressions);
    a prediction is correct if the best region has an IoU above 0.5 with the target.
    """
    region_mask = batch.region_mask[batch.image_indices]
    losses = F.binary_cross_entropy_with_logits(scores, batch.targets, reduction="none")
    best_targets = batch.targets.gather(1, scores.argmax(1, keepdim=True))
    return LossOutput((losses * region_mask).sum(1).mean(), (best_targets > 0.5).float().mean())


class FineTuningObjective(nn.Module):
    """The loss of one head.

    Needs a model whose forward returns the scores of a named head.

    Args:
        model: The model to train.
        head: Name of the head.
        compute_loss: Computes loss and accuracy from scores and batch.
    """

    def __init__(self, model: TaskModel, head: str, compute_loss: Callable[[Tensor, TaskBatch], LossOutput]) -> None:
        super().__init__()
        self.model, self.head, self.compute_loss = model, head, compute_loss

    def forward(self, batch: TaskBatch) -> dict[str, Tensor]:
        output = self.compute_loss(score_batch(self.model, self.head, batch).float(), batch)
        return {"loss": output.loss, "accuracy": output.accuracy}


def score_batch(model: TaskModel, head: str, batch: TaskBatch) -> Float[Tensor, "rows *outputs"]:
    """The scores of a head for a batch."""
    return model(
        head,
        batch.token_ids,
        batch.token_types,
        batch.token_mask,
        batch.region_features,
        batch.spatials,
        batch.region_mask,
        batch.image_indices,
        batch.task_ids if batch.task_ids.numel() else None,
    )


@dataclass(frozen=True)
class ViLBERTFineTuneConfig(FineTuneConfig):
    """The options that all recipes that fine-tune a ViLBERT share; the defaults are VQA's (ViLBERT, section 3.3).

    Args:
        from_bert: Start without pretraining on captions (the daggers of table 1): --model is a Hugging Face BERT, and
            the network is this variant with the BERT's weights in its text stream. Its other layers are randomly
            initialized and have a learning rate of at least 1e-4.
        learning_rate: Learning rate of the pretrained layers. That of the new head is the larger of 1e-4 and this.
        seed: Seed of the head's initialization, the order and random draws.
        ablate: Ablate one modality, text or image, to measure what the other predicts alone.
        max_regions: Maximum number of regions of an image.
        task_token: Task token, for a model that has them (12-in-1); by default that of the task.
    """

    from_bert: ViLBERTVariant | None = None
    ablate: Ablation = "none"
    max_regions: int = 100
    task_token: int | None = None


@dataclass(frozen=True)
class EvaluationOptions(ComputeOptions):
    """The options that all evaluations of a fine-tuned ViLBERT share.

    Args:
        ablate: Ablate one modality, text or image.
        max_regions: Maximum number of regions of an image.
        task_token: Task token, for a model that has them (12-in-1); by default that of the task.
        out: Folder for results.json, the predictions and the results card; nothing is written without it.
    """

    ablate: Ablation = "none"
    max_regions: int = 100
    task_token: int | None = None
    out: Path | None = None

    def load_model(self, model: Path, regions: Path, head: str) -> "LoadedTaskModel":
        """The model that was fine-tuned with this head, and its inputs; see `load_fine_tuned_model`."""
        loaded = load_fine_tuned_model(model, regions, self.ablate, self.max_regions, self.resolve(), head)
        return loaded._replace(task_token=self.task_token)


DEFAULT_EVALUATION = EvaluationOptions()


class FineTuningData(NamedTuple):
    """The initial model, and the region store and vocabulary of a run.

    Args:
        model: The network without a head.
        folder: Folder of the pretrained model; None without one.
        store: The region store.
        tokenizer: The vocabulary.
        pretrained: Names of the parameters that are not randomly initialized.
        fine_tuned: The model in the folder, if it has heads that go on training.
    """

    model: ViLBERT | SingleStream
    folder: Path | None
    store: RegionStore
    tokenizer: WordPieceTokenizer
    pretrained: tuple[str, ...]
    fine_tuned: TaskModel | None = None


def load_fine_tuning_data(model: Path, regions: Path, fine_tune: ViLBERTFineTuneConfig) -> FineTuningData:
    """Loads the pretrained network, the region store and the vocabulary, and checks that they are compatible.

    Args:
        model: Run or model folder of a pretrained ViLBERT or single stream, or of a fine-tuned one; with `from_bert` a
            Hugging Face BERT.
        regions: Region store of the images.
        fine_tune: Whether the network is randomly initialized, and by which seed; the variant that a BERT is for.

    Raises:
        CheckpointError: There is no ViLBERT (or BERT) in the folder.
        DataError: The store or the vocabulary cannot be read or is not compatible.
    """
    if fine_tune.from_bert is not None:
        is_pretrained, store = fine_tune.start_from == "pretrained", RegionStore(regions)
        built = build_network_from_bert(model, store, fine_tune.from_bert, fine_tune.seed, is_pretrained)
        return FineTuningData(built.network, None, store, built.tokenizer, built.filled)
    loaded, store, tokenizer = load_model(model), RegionStore(regions), WordPieceTokenizer.read(model)
    network = get_backbone(loaded, model)
    check_region_compatibility(model, network.config.num_visual_tokens, network.config.region_feature_dim, store)
    names = tuple(name for name, _ in network.named_parameters())
    if fine_tune.start_from == "scratch":
        return FineTuningData(make_untrained_copy(network, fine_tune.seed), model, store, tokenizer, ())
    return FineTuningData(network, model, store, tokenizer, names, loaded if isinstance(loaded, TaskModel) else None)


def get_backbone(model: nn.Module, path: Path) -> ViLBERT | SingleStream:
    """A ViLBERT or a single stream, or the backbone of a fine-tuned model; `path` is for messages."""
    backbone = model.vilbert if isinstance(model, TaskModel) else model
    if not isinstance(backbone, ViLBERT | SingleStream):
        raise CheckpointError(f"{path}: a {type(model).__name__}; fine-tuning starts from a ViLBERT")
    return backbone


def check_region_compatibility(model: Path, tokens: int, features: int, store: RegionStore) -> None:
    """Checks that the model can read the regions of the store."""
    if tokens and store.tokens != tokens - len(TokenInput):
        raise DataError(
            f"{store.folder} has {store.tokens:,} visual tokens and {model} reads {tokens - len(TokenInput):,}: "
            "prepare its tokens with the codebook that the model was trained with"
        )
    if not tokens and store.dim != features:
        raise DataError(
            f"{store.folder} has regions of {store.dim:,} features and {model} reads {features:,}: "
            "extract the regions with the network that was used for its training data"
        )
    check_same_regions(find_model_folder(model), store)


def add_task_head(model: ViLBERT | SingleStream, head: Head, seed: int) -> TaskModel:
    """The network with a new head; a two-layer head has a hidden layer twice as wide as a pooled stream."""
    if head.kind in ("answers", "pairs") and not head.hidden:
        head = replace(head, hidden=2 * model.config.joint_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        task_model = TaskModel(TaskModelConfig(model.config, (head,)))
    task_model.vilbert.load_state_dict(model.state_dict())
    return task_model.train()


def build_vilbert_run(
    parts: FineTuningData,
    fine_tune: ViLBERTFineTuneConfig,
    head: Head,
    compute_loss: Callable[[Tensor, TaskBatch], LossOutput],
    train: ExampleSource,
    validation: ExampleSource | None,
    fingerprint: str,
    files: Mapping[str, bytes],
) -> Run:
    """The run of a task: batches, optimizer and learning rate."""
    network = add_task_head(parts.model, head, fine_tune.seed)
    if parts.folder is not None and parts.fine_tuned is not None:
        continue_heads(network, parts.fine_tuned, parts.folder, files)
    objective = FineTuningObjective(network, head.name, compute_loss)
    has_visual_tokens = parts.model.config.num_visual_tokens > 0
    task_token = choose_task_token(parts.model.config, head.name, fine_tune.task_token)

    def make_loader(source: ExampleSource, seed: int | None, length: int | None) -> Loader:
        max_regions, size = fine_tune.max_regions, fine_tune.batch_size
        ablate = fine_tune.ablate
        examples = TaskDataset(
            source, parts.store, parts.tokenizer, max_regions, has_visual_tokens, ablate, size, seed, task_token,
            fine_tune.task_token is not None,
        )  # fmt: skip
        return Loader(examples, size, fine_tune.workers, length)

    batches = make_loader(train, fine_tune.seed, None)
    freeze_unused_parameters(objective, batches.samples.batch([(0, 0)]))  # type: ignore[arg-type]
    steps = max(1, round(fine_tune.epochs * len(train) / fine_tune.batch_size))
    is_vilbert = parts.folder is not None and len(parts.pretrained) > 0
    max_learning_rate = choose_max_learning_rate(fine_tune.learning_rate, head, is_vilbert)
    pretrained = [objective.model.vilbert.get_parameter(name) for name in parts.pretrained]
    length = -(-len(validation) // fine_tune.batch_size) * fine_tune.batch_size if validation is not None else None
    return Run(
        objective=objective,
        batches=batches,
        validation=None if validation is None else make_loader(validation, None, length),
        optimizer=make_adamw(
            objective,
            max_learning_rate,
            VILBERT_WEIGHT_DECAY,
            pretrained=pretrained,
            pretrained_lr_scale=fine_tune.learning_rate / max_learning_rate,
        ),
        learning_rate=make_linear_schedule(max_learning_rate, steps, round(VILBERT_WARMUP_RATIO * steps)),
        steps=steps,
        seed=fine_tune.seed,
        fingerprint=fingerprint,
        files={
            "tokenizer.json": parts.tokenizer.to_json(),
            **collect_region_record(parts.store, parts.folder),
            **files,
        },
        selection_metric="accuracy" if validation is not None else "",
    )


def choose_max_learning_rate(learning_rate: float, head: Head, is_vilbert: bool) -> float:
    """The learning rate of the head, at least the original's unless a pretrained ViLBERT has a head on regions.

    The original raises the learning rate of names with `vil_`, which excludes the head on regions, `vision_logit`.
    """
    return learning_rate if head.kind == "regions" and is_vilbert else max(learning_rate, HEAD_LEARNING_RATE)


def freeze_unused_parameters(objective: FineTuningObjective, batch: TaskBatch) -> None:
    """Freezes parameters that the head does not depend on: pretraining heads, and layers whose output is unused."""
    objective(batch)["loss"].backward()
    for parameter in objective.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
        parameter.grad = None


class EvaluatedExample(NamedTuple):
    """An example, its position, and the model's scores of (answers), (classes), (texts) or (regions)."""

    position: int
    example: TaskExample
    scores: Float[np.ndarray, "outputs"]


class LoadedTaskModel(NamedTuple):
    """A fine-tuned model with its inputs: regions, vocabulary, ablation and device."""

    model: TaskModel
    store: RegionStore
    tokenizer: WordPieceTokenizer
    ablate: Ablation
    max_regions: int
    compute: Compute
    task_token: int | None = None

    def get_head(self, name: str) -> Head:
        """The specification of a head that the model has."""
        return next(head for head in self.model.config.heads if head.name == name)


def load_fine_tuned_model(
    model: Path, regions: Path, ablate: Ablation, max_regions: int, compute: Compute, head: str
) -> LoadedTaskModel:
    """Loads a model that was fine-tuned with this head, its vocabulary and a compatible region store.

    Raises:
        CheckpointError: There is no fine-tuned model in the folder, or one without that head.
        DataError: The store or the vocabulary cannot be read or is not compatible.
    """
    task_model, store = load_task_model(model), RegionStore(regions)
    head_names = [head_config.name for head_config in task_model.config.heads]
    if head not in head_names:
        raise CheckpointError(f"{model}: fine-tuned with the head {', '.join(head_names)}, not with {head}")
    check_region_compatibility(
        model, task_model.config.vilbert.num_visual_tokens, task_model.config.vilbert.region_feature_dim, store
    )
    return LoadedTaskModel(task_model, store, WordPieceTokenizer.read(model), ablate, max_regions, compute)


def score_examples(loaded: LoadedTaskModel, head: str, examples: Sequence[TaskExample]) -> Iterator[EvaluatedExample]:
    """Yields the scores of every example, batched by similar length; shows a progress bar."""
    unlabeled = FixedExamples([example._replace(target=None) for example in examples])
    order = sorted(range(len(examples)), key=unlabeled.length)
    has_visual_tokens = loaded.model.config.vilbert.num_visual_tokens > 0
    size = loaded.compute.sequence_batch
    task_token = choose_task_token(loaded.model.config.vilbert, head, loaded.task_token)
    reading = (loaded.store, loaded.tokenizer, loaded.max_regions, has_visual_tokens, loaded.ablate)
    is_fixed = loaded.task_token is not None
    batches = TaskDataset(unlabeled, *reading, size, seed=None, task_token=task_token, is_token_fixed=is_fixed)
    device = loaded.compute.device
    model = loaded.model.to(device).eval()
    starts = range(0, len(order), size)
    for start in track_progress(starts, "predicting"):
        indices = order[start : start + size]
        batch = batches.batch([(0, index) for index in indices]).to(device)
        with torch.inference_mode(), loaded.compute.autocast():
            scores = score_batch(model, head, batch).float().cpu().numpy()
        check_finite_scores(scores, f"the head {head!r}")
        for index, rows in zip(indices, np.split(scores, len(indices)), strict=True):
            yield EvaluatedExample(index, examples[index], rows.ravel())


def compute_fine_tuning_fingerprint(fine_tune: ViLBERTFineTuneConfig, store: RegionStore, files: Iterable[Path]) -> str:
    """A hash of everything that training reads."""
    digest = hashlib.sha256(f"{store.fingerprint} {fine_tune.ablate}".encode())
    for file in files:
        digest.update(hash_card_file(file).encode())
    return digest.hexdigest()[:16]
