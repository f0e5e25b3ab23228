"""Fine-tuning and evaluating a ViLBERT on a task (ViLBERT, section 3.3).

Every task trains the whole network and a new head with AdamW. As in facebookresearch/vilbert-multi-task, the learning
rate of the head is 1e-4 (a head on regions has the task's learning rate), and that of the pretrained layers is the
task's. It rises linearly over a tenth of the steps, then decays linearly.
With validation examples, the model has the weights of the best validation score. Departs from the original: the
learning rate has no steps at epochs 5 and 7, and nothing is selected on a test split.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.data.batch import TaskBatch, TokenInput
from comodal.data.loader import Loader, Workers
from comodal.data.regions.region_compatibility import check_same_regions
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError, check_number
from comodal.hardware import Compute
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import find_model_folder, load_model, make_untrained_copy
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig, load_task_model
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.progress import track_progress
from comodal.tasks.evaluation.metrics import check_finite_scores
from comodal.tasks.evaluation.results_card import hash_card_file
from comodal.tasks.vision_language.region_record import collect_region_record
from comodal.tasks.vision_language.text_image_examples import (
    Ablation,
    ExampleSource,
    FixedExamples,
    TaskDataset,
    TaskExample,
)
from comodal.training.optimization import MAX_EPOCHS, make_adamw, make_linear_schedule
from comodal.training.recipe_run import Run

HEAD_LEARNING_RATE = 1e-4
VILBERT_WEIGHT_DECAY = 0.01
VILBERT_WARMUP_RATIO = 0.1
ViLBERTStart = Literal["pretrained", "scratch"]


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
    attended = batch.regions_attended[batch.images]
    each = F.binary_cross_entropy_with_logits(scores, batch.targets, reduction="none")
    best = batch.targets.gather(1, scores.argmax(1, keepdim=True))
    return LossOutput((each * attended).sum(1).mean(), (best > 0.5).float().mean())


class FineTuningObjective(nn.Module):
    """The loss of one head.

    Needs a model whose forward returns the scores of a named head.

    Args:
        model: The model to train.
        head: Name of the head.
        judge: Computes loss and accuracy from scores and batch.
    """

    def __init__(self, model: TaskModel, head: str, judge: Callable[[Tensor, TaskBatch], LossOutput]) -> None:
        super().__init__()
        self.model, self.head, self.judge = model, head, judge

    def forward(self, batch: TaskBatch) -> dict[str, Tensor]:
        judged = self.judge(score_batch(self.model, self.head, batch).float(), batch)
        return {"loss": judged.loss, "accuracy": judged.accuracy}


def score_batch(model: TaskModel, head: str, batch: TaskBatch) -> Float[Tensor, "rows *outputs"]:
    """The scores of a head for a batch."""
    return model(
        head,
        batch.words,
        batch.segments,
        batch.words_attended,
        batch.regions,
        batch.locations,
        batch.regions_attended,
        batch.images,
    )


@dataclass(frozen=True)
class FineTuneConfig:
    """The parameters that all fine-tuning recipes share.

    Args:
        model: Run or model folder of a pretrained ViLBERT, or of a fine-tuned one.
        regions: Region store of the images.
        start: Start from the pretrained weights, or from random initialization (a control).
        blank: Ablate one modality, text or image, to measure what the other predicts alone.
        epochs: Passes over the training examples.
        batch_size: Examples per step, over all processes.
        learning_rate: Learning rate of the pretrained layers. That of the head is the larger of 1e-4 and this. A head
            on regions has this learning rate, as in the original, whose rule is for names with `vil_` and excludes
            `vision_logit`.
        max_regions: Maximum number of regions of an image.
        workers: Data loading processes.
        seed: Seed of the head's initialization, the order and random draws.
    """

    model: Path
    regions: Path
    start: ViLBERTStart
    blank: Ablation
    epochs: float
    batch_size: int
    learning_rate: float
    max_regions: int
    workers: Workers
    seed: int

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, 0, MAX_EPOCHS)


class FineTuningData(NamedTuple):
    """The pretrained model, region store and vocabulary of a run."""

    model: ViLBERT
    store: RegionStore
    words: WordPieceTokenizer


def load_fine_tuning_data(setup: FineTuneConfig) -> FineTuningData:
    """Loads the pretrained network, the region store and the vocabulary, and checks that they are compatible.

    Raises:
        CheckpointError: There is no ViLBERT in the folder.
        DataError: The store or the vocabulary cannot be read or is not compatible.
    """
    model, store, words = (
        load_any_vilbert(setup.model),
        RegionStore(setup.regions),
        WordPieceTokenizer.read(setup.model),
    )
    check_region_compatibility(setup.model, model.config.region_tokens, model.config.region_features, store)
    if setup.start == "scratch":
        model = make_untrained_copy(model, setup.seed)
    return FineTuningData(model, store, words)


def load_any_vilbert(path: Path) -> ViLBERT:
    """Loads a ViLBERT, or the backbone of a fine-tuned model."""
    model = load_model(path)
    found = model.vilbert if isinstance(model, TaskModel) else model
    if not isinstance(found, ViLBERT):
        raise CheckpointError(f"{path}: a {type(model).__name__}; fine-tuning begins with a ViLBERT")
    return found


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
            "prepare the regions by the network that made those of its training"
        )
    check_same_regions(find_model_folder(model), store)


def add_task_head(model: ViLBERT, head: Head, seed: int) -> TaskModel:
    """The network with a new head; a two-layer head has a hidden layer twice as wide as a pooled stream."""
    if head.kind in ("answers", "pairs") and not head.hidden:
        head = replace(head, hidden=2 * model.config.joint_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = TaskModel(TaskModelConfig(model.config, (head,)))
    made.vilbert.load_state_dict(model.state_dict())
    return made.train()


def build_vilbert_run(
    parts: FineTuningData,
    setup: FineTuneConfig,
    head: Head,
    judge: Callable[[Tensor, TaskBatch], LossOutput],
    train: ExampleSource,
    validation: ExampleSource | None,
    fingerprint: str,
    files: Mapping[str, bytes],
) -> Run:
    """The run of a task: batches, optimizer and learning rate."""
    objective = FineTuningObjective(add_task_head(parts.model, head, setup.seed), head.name, judge)
    as_tokens = parts.model.config.region_tokens > 0

    def loader(source: ExampleSource, seed: int | None, length: int | None) -> Loader:
        most, size = setup.max_regions, setup.batch_size
        examples = TaskDataset(source, parts.store, parts.words, most, as_tokens, setup.blank, size, seed)
        return Loader(examples, size, setup.workers, length)

    batches = loader(train, setup.seed, None)
    freeze_unused_parameters(objective, batches.samples.batch([(0, 0)]))  # type: ignore[arg-type]
    steps = max(1, round(setup.epochs * len(train) / setup.batch_size))
    at_tasks_rate = head.kind == "regions" and setup.start == "pretrained"
    highest = setup.learning_rate if at_tasks_rate else max(setup.learning_rate, HEAD_LEARNING_RATE)
    below = list(objective.model.vilbert.parameters()) if setup.start == "pretrained" else []
    length = -(-len(validation) // setup.batch_size) * setup.batch_size if validation is not None else None
    return Run(
        objective=objective,
        batches=batches,
        validation=None if validation is None else loader(validation, None, length),
        optimizer=make_adamw(
            objective, highest, VILBERT_WEIGHT_DECAY, pretrained=below, pretrained_share=setup.learning_rate / highest
        ),
        learning_rate=make_linear_schedule(highest, steps, round(VILBERT_WARMUP_RATIO * steps)),
        steps=steps,
        seed=setup.seed,
        fingerprint=fingerprint,
        files={"tokenizer.json": parts.words.as_json(), **collect_region_record(parts.store, setup.model), **files},
        chosen_by="accuracy" if validation is not None else "",
    )


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
    words: WordPieceTokenizer
    blank: Ablation
    max_regions: int
    compute: Compute


def load_fine_tuned_model(
    model: Path, regions: Path, blank: Ablation, max_regions: int, compute: Compute, head: str
) -> LoadedTaskModel:
    """Loads a model that was fine-tuned with this head, its vocabulary and a compatible region store.

    Raises:
        CheckpointError: There is no fine-tuned model in the folder, or one without that head.
        DataError: The store or the vocabulary cannot be read or is not compatible.
    """
    found, store = load_task_model(model), RegionStore(regions)
    there = [one.name for one in found.config.heads]
    if head not in there:
        raise CheckpointError(f"{model}: fine-tuned with the head {', '.join(there)}, not with {head}")
    check_region_compatibility(model, found.config.vilbert.region_tokens, found.config.vilbert.region_features, store)
    return LoadedTaskModel(found, store, WordPieceTokenizer.read(model), blank, max_regions, compute)


def score_examples(asked: LoadedTaskModel, head: str, examples: Sequence[TaskExample]) -> Iterator[EvaluatedExample]:
    """Yields the scores of every example, batched by similar length; shows a progress bar."""
    unanswered = FixedExamples([example._replace(target=None) for example in examples])
    order = sorted(range(len(examples)), key=unanswered.length)
    as_tokens = asked.model.config.vilbert.region_tokens > 0
    size = asked.compute.sequence_batch
    batches = TaskDataset(
        unanswered, asked.store, asked.words, asked.max_regions, as_tokens, asked.blank, size, seed=None
    )
    device = asked.compute.device
    model = asked.model.to(device).eval()
    starts = range(0, len(order), size)
    for start in track_progress(starts, "answering"):
        chosen = order[start : start + size]
        batch = batches.batch([(0, index) for index in chosen]).to(device)
        with torch.inference_mode(), asked.compute.autocast():
            scores = score_batch(model, head, batch).float().cpu().numpy()
        check_finite_scores(scores, f"the head {head!r}")
        for index, rows in zip(chosen, np.split(scores, len(chosen)), strict=True):
            yield EvaluatedExample(index, examples[index], rows.ravel())


def compute_fine_tuning_fingerprint(setup: FineTuneConfig, store: RegionStore, files: Iterable[Path]) -> str:
    """A hash of everything that training reads."""
    digest = hashlib.sha256(f"{store.fingerprint} {setup.blank}".encode())
    for file in files:
        digest.update(hash_card_file(file).encode())
    return digest.hexdigest()[:16]
