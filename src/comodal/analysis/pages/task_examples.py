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
from comodal.tasks.vision_language.grounding.flickr30k_entities import recipe as phrases
from comodal.tasks.vision_language.grounding.refcoco import recipe as grounding
from comodal.tasks.vision_language.nlvr2 import recipe as nlvr2
from comodal.tasks.vision_language.question_answering.gqa import recipe as gqa
from comodal.tasks.vision_language.question_answering.visual_genome import recipe as visual_genome
from comodal.tasks.vision_language.question_answering.vqa import recipe as vqa
from comodal.tasks.vision_language.question_answering.vqa_files import read_model_vocabulary
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
    "retrieval": retrieval, "nlvr2": nlvr2, "entailment": entailment,
}  # fmt: skip
MAX_EVALUATED_EXAMPLES = 200  # examples, from which correct and incorrect ones are chosen
NUM_SHOWN_EXAMPLES = 3  # of correct and of incorrect ones
NUM_SHOWN_ANSWERS = 5  # answers of an example
MIN_CORRECT_SCORE = 0.5  # of an answer's soft score, or of a region's overlap


class TaskPrediction(NamedTuple):
    """The predictions of a model for an example.

    Args:
        names: The candidates: answers, classes, texts or regions.
        shares: The probability of each candidate.
        truth: The correctness of each candidate, from 0 to 1.
    """

    names: Sequence[str]
    shares: Float[np.ndarray, "outputs"]
    truth: Float[np.ndarray, "outputs"]

    @property
    def best(self) -> int:
        """The index of the likeliest candidate."""
        return int(self.shares.argmax())

    @property
    def right(self) -> bool:
        """Whether the likeliest candidate counts as correct."""
        return bool(self.truth[self.best] > MIN_CORRECT_SCORE)


def build_example_parts(run: Path, task: str, images: Path, compute: Compute) -> list[PageSection]:
    """Correct and incorrect examples of a run, each as a section of its page.

    Raises:
        DataError: The run does not name its task, its files are missing, or an image is missing.
    """
    if task not in TASK_MODULES:
        raise DataError(f"{run} does not say for which task it was fine-tuned, so no examples of it can be shown")
    told = read_yaml(run / "config.yaml", RecipeError)
    again = TASK_MODULES[task](
        **parse_recipe_arguments(TASK_MODULES[task], told | {"model": str(run), "start": "pretrained", "workers": 0})
    )
    loader = again.validation or again.batches
    seen = loader.samples
    assert isinstance(seen, TaskDataset)
    head = again.objective.model.config.heads[0]
    asked = load_fine_tuned_model(
        run, Path(told["regions"]), told["blank"], int(told["max_regions"]), compute, head.name
    )
    check_co_attention(asked.model.vilbert, run)
    places = np.linspace(0, len(seen) - 1, min(MAX_EVALUATED_EXAMPLES, len(seen))).round().astype(int).tolist()
    answered = list(score_examples(asked, head.name, [seen.source.example(0, place) for place in places]))
    judged = [(one, predict_example(run, head, one, seen)) for one in answered]
    files = index_image_files(images)
    held_out = "validation data" if again.validation else "training data (the run has no validation data)"
    parts = []
    for wanted in (True, False):
        some = [(one, verdict) for one, verdict in judged if verdict.right == wanted]
        for one, verdict in some[:NUM_SHOWN_EXAMPLES]:
            parts.append(build_example_part(one.example, verdict, asked, seen, head, files, images))
    return [summarize_predictions([verdict for _, verdict in judged], held_out), *parts]


def parse_recipe_arguments(recipe: Callable[..., Any], told: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run with the types that its recipe takes: paths are text in config.yaml."""
    hints, found = get_type_hints(recipe), {}
    for name in signature(recipe).parameters:
        if name in told:
            value = told[name]
            if value is not None and "Path" in str(hints[name]):
                value = [Path(one) for one in value] if isinstance(value, list) else Path(value)
            found[name] = value
    return found


def predict_example(run: Path, head: Head, one: EvaluatedExample, seen: TaskDataset) -> TaskPrediction:
    """Scores as probabilities: a sigmoid for answers and regions, a softmax for classes and texts."""
    scores, target, example = one.scores.astype(np.float64), one.example.target, one.example
    if head.kind in ("answers", "regions"):
        assert isinstance(target, np.ndarray)
        count = len(target)  # of regions, padding has a score too
        names = (
            read_model_vocabulary(run)
            if head.kind == "answers"
            else [format_region_name(place) for place in range(count)]
        )
        return TaskPrediction(names, 1 / (1 + np.exp(-scores[:count])), target.astype(np.float64))
    assert isinstance(target, int)
    shares = np.exp(scores - scores.max())
    names = (
        read_json(find_model_folder(run) / "task.json", CheckpointError)["classes"]
        if (find_model_folder(run) / "task.json").is_file()
        else [
            f"{decode_example_text(seen, example, place)} ({seen.store.ids[row]})"
            for place, row in enumerate(example.rows)
        ]
    )
    return TaskPrediction(names, shares / shares.sum(), np.eye(len(names))[target])


def format_region_name(place: int) -> str:
    return f"region {place}" if place else "the whole image"


def decode_example_text(seen: TaskDataset, example: TaskExample, place: int) -> str:
    """A text of an example, decoded from its tokens."""
    pieces = [seen.words.vocabulary[piece] for piece in example.texts[place].words[1:-1]]
    return " ".join(pieces).replace(" ##", "").replace("[SEP]", "/")


def summarize_predictions(verdicts: Sequence[TaskPrediction], of: str) -> PageSection:
    """The number of correct predictions among the evaluated examples."""
    correct = sum(verdict.right for verdict in verdicts)
    text = (
        f"Of {len(verdicts)} examples of its {of}, evaluated for this page, {correct} predictions are correct. Below "
        "are correct ones, then incorrect ones. Each image has its regions outlined. Below it are the tokens whose "
        "attention differs most from the average. The brighter a region, the more the token attends to it in the last "
        "co-attention layer (mean of its heads). Attention shows where the model looks, not why it predicts what it "
        "does."
    )
    return PageSection("Example predictions", text)


def build_example_part(
    example: TaskExample,
    verdict: TaskPrediction,
    asked: LoadedTaskModel,
    seen: TaskDataset,
    head: Head,
    files: dict[str, Path],
    images: Path,
) -> PageSection:
    """One example: the predictions in a table, and each text with its image."""
    choices = head.kind == "linear" and len(example.texts) > 1
    drawn = [verdict.best] if choices else range(len(example.texts))
    title = decode_example_text(seen, example, verdict.best if choices else 0)
    mark = PageMark("correct" if verdict.right else "incorrect", verdict.right)
    blocks: list[PageBlock] = [mark, build_answer_table(verdict)]
    for place in drawn:
        shown = format_text_attention(asked, seen, example, place, files, images)
        right: np.ndarray | None = None
        if head.kind == "regions":
            shown, right = mark_predicted_region(shown, verdict)
        figure = draw_example_regions(shown)
        if right is not None:
            draw_box_outline(figure.axes[0], right, CORRECT_COLOR, 2.0)
        blocks.append(embed_figure(figure, f"the regions of {seen.store.ids[example.rows[place]]}"))
        blocks.append(build_token_attention(shrink_example(shown), shown.layers[-1]))
    about = "The predicted box has a broad outline. The box that overlaps the ground truth most is green."
    return PageSection(title, about if head.kind == "regions" else "", blocks)


def mark_predicted_region(
    shown: co_attention.AttentionExample, verdict: TaskPrediction
) -> tuple[co_attention.AttentionExample, np.ndarray | None]:
    """The predicted box, and the one that overlaps the ground truth best, if any does; row 0 is the whole image."""
    height, width = shown.picture.shape[:2]
    boxes = np.concatenate([[[0.0, 0.0, width, height]], shown.boxes])
    fits = int(verdict.truth.argmax())
    chosen = tuple(float(side) for side in boxes[verdict.best])
    return shown._replace(pointed=chosen), boxes[fits] if verdict.truth[fits] > 0 else None


def build_answer_table(verdict: TaskPrediction) -> PageTable:
    """The likeliest predictions, and the correct one at any rank."""
    order = verdict.shares.argsort()[::-1].tolist()
    best_truth = int(verdict.truth.argmax())
    listed = order[:NUM_SHOWN_ANSWERS] + (
        [best_truth] if best_truth not in order[:NUM_SHOWN_ANSWERS] and verdict.truth[best_truth] > 0 else []
    )
    columns = [PageColumn("prediction"), PageColumn("probability", "number"), PageColumn("ground truth")]
    rows = [
        PageRow((verdict.names[place], f"{verdict.shares[place]:.3f}", describe_correctness(verdict, place)))
        for place in listed
    ]
    return PageTable("Predictions", columns, rows)


def describe_correctness(verdict: TaskPrediction, place: int) -> str:
    """The correctness of one answer as text."""
    share = float(verdict.truth[place])
    return "" if share == 0 else "correct" if share == 1 else f"score {share:.2f}"


@torch.inference_mode()
def format_text_attention(
    asked: LoadedTaskModel, seen: TaskDataset, example: TaskExample, place: int, files: dict[str, Path], images: Path
) -> co_attention.AttentionExample:
    """The attention of one text of an example with its image."""
    row, text = example.rows[place], seen.seen(example.texts[place])
    features, places = (torch.from_numpy(part)[None] for part in seen.picture(row))
    device = asked.compute.device
    vision = asked.model.vilbert.vision_prefix(features.to(device), places.to(device), None)
    _, layers = compute_co_attention(asked.model.vilbert, text.words, vision, text.segments)
    names, image = [seen.words.vocabulary[piece] for piece in text.words], seen.store.ids[row]
    if image not in files:
        raise DataError(f"{images} has no image of the name {image}, which is in {seen.store.folder}")
    boxes = seen.store.regions(row).boxes[: places.shape[1] - 1]
    said, shown = decode_example_text(seen, example, place), select_attentive_tokens(names, layers[-1])
    return co_attention.AttentionExample(said, "", read_image(files[image]), boxes, names, layers, shown)
