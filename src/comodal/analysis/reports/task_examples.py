"""Examples of a fine-tuned run on its page: predictions, ground truth and attention.

The examples are from the run's validation data. The run's recipe reads them with the run's own settings. The
predictions are those of `comodal evaluate`. The attention is the co-attention of the same texts and regions (ViLBERT,
section 3.1).
"""

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch
from jaxtyping import Float

from comodal.analysis import co_attention
from comodal.analysis.co_attention import (
    check_co_attention,
    compute_co_attention,
    draw_box_outline,
    index_image_files,
    select_attentive_tokens,
)
from comodal.analysis.pages.attention_page import build_token_attention, draw_example_regions, shrink_example
from comodal.analysis.pages.page_parts import (
    PageBlock,
    PageColumn,
    PageMark,
    PageRow,
    PageSection,
    PageTable,
    embed_figure,
)
from comodal.analysis.pair_predictions import CORRECT_COLOR
from comodal.errors import CheckpointError, DataError, RecipeError
from comodal.hardware import Compute
from comodal.media.image import read_image
from comodal.models.checkpoint import find_model_folder
from comodal.models.vilbert.heads import Head
from comodal.tasks.retrieval.caption_retrieval import recipe as retrieval
from comodal.tasks.vision_language.answer_files import read_model_vocabulary
from comodal.tasks.vision_language.grounding.flickr30k_entities import recipe as phrases
from comodal.tasks.vision_language.grounding.guesswhat import recipe as guesswhat
from comodal.tasks.vision_language.grounding.refcoco import recipe as grounding
from comodal.tasks.vision_language.grounding.visual7w import recipe as visual7w
from comodal.tasks.vision_language.nlvr2 import recipe as nlvr2
from comodal.tasks.vision_language.question_answering.gqa import recipe as gqa
from comodal.tasks.vision_language.question_answering.visual_genome import recipe as visual_genome
from comodal.tasks.vision_language.question_answering.vqa import recipe as vqa
from comodal.tasks.vision_language.sentence_classification import TASK_FILE
from comodal.tasks.vision_language.snli_ve import recipe as entailment
from comodal.tasks.vision_language.text_image_examples import TaskDataset, TaskExample
from comodal.tasks.vision_language.vcr import recipe as vcr
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    EvaluatedExample,
    LoadedTaskModel,
    load_fine_tuned_model,
    score_examples,
)
from comodal.text_files import read_json, read_yaml

TASK_MODULES: dict[str, Callable[..., Any]] = {
    "vqa": vqa, "gqa": gqa, "visual_genome": visual_genome, "vcr": vcr, "grounding": grounding, "phrases": phrases,
    "visual7w": visual7w, "guesswhat": guesswhat, "retrieval": retrieval, "nlvr2": nlvr2, "entailment": entailment,
}  # fmt: skip
MAX_EVALUATED_EXAMPLES = 200  # examples, from which correct and incorrect ones are chosen
NUM_SHOWN_EXAMPLES = 3  # of correct and of incorrect ones
NUM_SHOWN_ANSWERS = 5  # answers of an example
MIN_CORRECT_SCORE = 0.5  # of an answer's soft score, or of a region's overlap


class TaskPrediction(NamedTuple):
    """The predictions of a model for an example.

    Args:
        names: The candidates: answers, classes, texts or regions.
        probabilities: The probability of each candidate.
        truth: The correctness of each candidate, from 0 to 1.
    """

    names: Sequence[str]
    probabilities: Float[np.ndarray, "outputs"]
    truth: Float[np.ndarray, "outputs"]

    @property
    def best_index(self) -> int:
        """The index of the likeliest candidate."""
        return int(self.probabilities.argmax())

    @property
    def is_correct(self) -> bool:
        """Whether the likeliest candidate counts as correct."""
        return bool(self.truth[self.best_index] > MIN_CORRECT_SCORE)


def build_example_parts(run: Path, task: str, images: Path, compute: Compute) -> list[PageSection]:
    """Correct and incorrect examples of a run, each as a section of its page.

    Raises:
        DataError: The run does not name its task, its files are missing, or an image is missing.
    """
    if task not in TASK_MODULES:
        raise DataError(f"{run} does not name the task that it was fine-tuned for, so its examples cannot be read")
    settings = read_yaml(run / "config.yaml", RecipeError)
    recipe_run = TASK_MODULES[task](
        **parse_recipe_arguments(
            TASK_MODULES[task], settings | {"model": str(run), "start_from": "pretrained", "workers": 0}
        )
    )
    loader = recipe_run.validation or recipe_run.batches
    dataset = loader.samples
    assert isinstance(dataset, TaskDataset)
    head = recipe_run.objective.model.config.heads[0]
    loaded = load_fine_tuned_model(
        run, Path(settings["regions"]), settings["ablate"], int(settings["max_regions"]), compute, head.name
    )
    check_co_attention(loaded.model.vilbert, run)
    indices = np.linspace(0, len(dataset) - 1, min(MAX_EVALUATED_EXAMPLES, len(dataset))).round().astype(int).tolist()
    evaluated = list(score_examples(loaded, head.name, [dataset.source.example(0, index) for index in indices]))
    predictions = [
        (evaluated_example, predict_example(run, head, evaluated_example, dataset)) for evaluated_example in evaluated
    ]
    files = index_image_files(images)
    split_name = "validation data" if recipe_run.validation else "training data (the run has no validation data)"
    parts = []
    for is_correct in (True, False):
        selected = [
            (evaluated_example, prediction)
            for evaluated_example, prediction in predictions
            if prediction.is_correct == is_correct
        ]
        for evaluated_example, prediction in selected[:NUM_SHOWN_EXAMPLES]:
            parts.append(
                build_example_part(evaluated_example.example, prediction, loaded, dataset, head, files, images)
            )
    return [summarize_predictions([prediction for _, prediction in predictions], split_name), *parts]


def parse_recipe_arguments(recipe: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run with the types that its recipe takes: paths are text in config.yaml."""
    hints, arguments = get_type_hints(recipe), {}
    for name in signature(recipe).parameters:
        if name in settings:
            value = settings[name]
            if value is not None and "Path" in str(hints[name]):
                value = [Path(item) for item in value] if isinstance(value, list) else Path(value)
            arguments[name] = value
    return arguments


def predict_example(run: Path, head: Head, evaluated: EvaluatedExample, dataset: TaskDataset) -> TaskPrediction:
    """Scores as probabilities: a sigmoid for answers and regions, a softmax for classes and texts."""
    scores, target, example = evaluated.scores.astype(np.float64), evaluated.example.target, evaluated.example
    if head.kind in ("answers", "regions"):
        assert isinstance(target, np.ndarray)
        count = len(target)  # of regions, padding has a score too
        names = (
            read_model_vocabulary(run, head)
            if head.kind == "answers"
            else [format_region_name(index) for index in range(count)]
        )
        probabilities = (target >= 0) / (1 + np.exp(-scores[:count]))  # a target below 0 is no candidate
        return TaskPrediction(names, probabilities, target.clip(min=0).astype(np.float64))
    assert isinstance(target, int)
    exponentials = np.exp(scores - scores.max())
    names = (
        read_json(find_model_folder(run) / TASK_FILE, CheckpointError)["classes"]
        if (find_model_folder(run) / TASK_FILE).is_file()
        else [
            f"{decode_example_text(dataset, example, index)} ({dataset.store.ids[row]})"
            for index, row in enumerate(example.rows)
        ]
    )
    return TaskPrediction(names, exponentials / exponentials.sum(), np.eye(len(names))[target])


def format_region_name(row: int) -> str:
    return f"region {row}" if row else "the whole image"


def decode_example_text(dataset: TaskDataset, example: TaskExample, index: int) -> str:
    """A text of an example, decoded from its tokens."""
    tokens = [dataset.tokenizer.vocabulary[token_id] for token_id in example.texts[index].token_ids[1:-1]]
    return " ".join(tokens).replace(" ##", "").replace("[SEP]", "/")


def summarize_predictions(predictions: Sequence[TaskPrediction], split_name: str) -> PageSection:
    """The number of correct predictions among the evaluated examples."""
    correct = sum(prediction.is_correct for prediction in predictions)
    text = (
        f"Of {len(predictions)} examples of its {split_name}, evaluated for this page, {correct} predictions are "
        f"correct. Below "
        "are correct ones, then incorrect ones. Each image has its regions outlined. Below it are the tokens whose "
        "attention differs most from the average. The brighter a region, the more the token attends to it in the last "
        "co-attention layer (mean of its heads). Attention shows where the model looks, not why it predicts what it "
        "does."
    )
    return PageSection("Example predictions", text)


def build_example_part(
    example: TaskExample,
    prediction: TaskPrediction,
    loaded: LoadedTaskModel,
    dataset: TaskDataset,
    head: Head,
    files: dict[str, Path],
    images: Path,
) -> PageSection:
    """One example: the predictions in a table, and each text with its image."""
    has_choices = head.kind == "linear" and len(example.texts) > 1
    indices = [prediction.best_index] if has_choices else range(len(example.texts))
    title = decode_example_text(dataset, example, prediction.best_index if has_choices else 0)
    mark_text = PageMark("correct" if prediction.is_correct else "incorrect", prediction.is_correct)
    blocks: list[PageBlock] = [mark_text, build_answer_table(prediction)]
    for index in indices:
        attention_example = format_text_attention(loaded, dataset, example, index, files, images)
        best_region: np.ndarray | None = None
        if head.kind == "regions":
            attention_example, best_region = mark_predicted_region(attention_example, prediction)
        figure = draw_example_regions(attention_example)
        if best_region is not None:
            draw_box_outline(figure.axes[0], best_region, CORRECT_COLOR, 2.0)
        blocks.append(embed_figure(figure, f"the regions of {dataset.store.ids[example.rows[index]]}"))
        blocks.append(build_token_attention(shrink_example(attention_example), attention_example.layers[-1]))
    about = "The predicted box has a broad outline. The box that overlaps the ground truth most is green."
    return PageSection(title, about if head.kind == "regions" else "", blocks)


def mark_predicted_region(
    attention_example: co_attention.AttentionExample, prediction: TaskPrediction
) -> tuple[co_attention.AttentionExample, np.ndarray | None]:
    """The predicted box, and the one that overlaps the ground truth best, if any does; row 0 is the whole image."""
    height, width = attention_example.image.shape[:2]
    boxes = np.concatenate([[[0.0, 0.0, width, height]], attention_example.boxes])
    best_row = int(prediction.truth.argmax())
    predicted_box = tuple(float(side) for side in boxes[prediction.best_index])
    return attention_example._replace(grounded_box=predicted_box), boxes[best_row] if prediction.truth[
        best_row
    ] > 0 else None


def build_answer_table(prediction: TaskPrediction) -> PageTable:
    """The likeliest predictions, and the correct one at any rank."""
    order = prediction.probabilities.argsort()[::-1].tolist()
    best_truth = int(prediction.truth.argmax())
    listed = order[:NUM_SHOWN_ANSWERS] + (
        [best_truth] if best_truth not in order[:NUM_SHOWN_ANSWERS] and prediction.truth[best_truth] > 0 else []
    )
    columns = [PageColumn("prediction"), PageColumn("probability", "number"), PageColumn("ground truth")]
    rows = [
        PageRow(
            (prediction.names[index], f"{prediction.probabilities[index]:.3f}", describe_correctness(prediction, index))
        )
        for index in listed
    ]
    return PageTable("Predictions", columns, rows)


def describe_correctness(prediction: TaskPrediction, index: int) -> str:
    """The correctness of one answer as text."""
    score = float(prediction.truth[index])
    return "" if score == 0 else "correct" if score == 1 else f"score {score:.2f}"


@torch.inference_mode()
def format_text_attention(
    loaded: LoadedTaskModel,
    dataset: TaskDataset,
    example: TaskExample,
    index: int,
    files: dict[str, Path],
    images: Path,
) -> co_attention.AttentionExample:
    """The attention of one text of an example with its image."""
    row, text = example.rows[index], dataset.ablate_text(example.texts[index])
    features, spatials = (torch.from_numpy(part)[None] for part in dataset.read_image_regions(row))
    device = loaded.compute.device
    vision = loaded.model.vilbert.encode_image(features.to(device), spatials.to(device), None)
    _, layers = compute_co_attention(loaded.model.vilbert, text.token_ids, vision, text.token_types)
    names, image = [dataset.tokenizer.vocabulary[token_id] for token_id in text.token_ids], dataset.store.ids[row]
    if image not in files:
        raise DataError(f"{images} has no image named {image}, which {dataset.store.folder} contains")
    boxes = dataset.store.read_regions(row).boxes[: spatials.shape[1] - 1]
    example_text, token_indices = (
        decode_example_text(dataset, example, index),
        select_attentive_tokens(names, layers[-1]),
    )
    return co_attention.AttentionExample(
        example_text, "", read_image(files[image]), boxes, names, layers, token_indices
    )
