"""`comodal ask`, `fill`, `align`, `ground` and `caption`: predictions for one image and a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from comodal.console import print_json, print_line
from comodal.files import write_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import ComputeOptions
from comodal.inference.caption_sampling import SamplingOptions
from comodal.inference.vision_language import (
    DEFAULT_SAMPLING,
    EncodedImage,
    GroundedBox,
    TextPredictions,
    VisionLanguagePipeline,
    load_vision_language,
    print_predictions,
    read_box_corners,
)
from comodal.registry import import_object

MATCH_DESCRIPTION = "corresponds to the image"
AttentionDrawing = Callable[[EncodedImage, Sequence[TextPredictions]], None]


@dataclass(frozen=True)
class PredictionOptions(ComputeOptions):
    """The options that the commands for one image and a text share.

    Args:
        boxes: If the model was trained on given boxes: a JSON list of [left, top, right, bottom].
        json: Print JSON.
        explain: Also draw the attention of each token: a .png or .svg, or a page (.html) of every layer.
    """

    boxes: Path | None = None
    json: bool = False
    explain: Path | None = None


DEFAULT_OPTIONS = PredictionOptions()


@flatten_parameters
def ask(
    image: Path,
    question: str,
    model: Path,
    top_k: int = 5,
    options: PredictionOptions = DEFAULT_OPTIONS,
) -> None:
    """Answers a question about an image, with the probability of each answer.

    Args:
        image: The image.
        question: In natural language.
        model: A run that was fine-tuned by `comodal train vqa`.
        top_k: Number of answers.
        options: The options that these commands share.

    Examples:
        comodal ask kitchen.jpg "what is on the table?" --model runs/vqa --explain attention.html
    """
    pipeline, encoded_image, draw = encode_image_file(image, model, options)
    predictions = pipeline.ask(encoded_image, question, top_k)
    draw(encoded_image, [TextPredictions(question, predictions)])
    print_predictions(predictions, options.json)


@flatten_parameters
def fill(
    image: Path,
    text: str,
    model: Path,
    top_k: int = 5,
    options: PredictionOptions = DEFAULT_OPTIONS,
) -> None:
    """Predicts the [MASK] tokens of a sentence about an image.

    Args:
        image: The image.
        text: A sentence with one or more [MASK] tokens.
        model: A pretrained run.
        top_k: Number of predictions for each [MASK].
        options: The options that these commands share.

    Examples:
        comodal fill meadow.jpg "a [MASK] on the grass" --model run/
    """
    pipeline, encoded_image, draw = encode_image_file(image, model, options)
    predictions_per_mask = pipeline.fill_mask(encoded_image, text, top_k)
    best_first = [prediction for predictions in zip(*predictions_per_mask, strict=True) for prediction in predictions]
    draw(encoded_image, [TextPredictions(text, best_first)])
    for predictions in predictions_per_mask:
        print_predictions(predictions, options.json)


@flatten_parameters
def align(
    image: Path,
    texts: list[str],
    model: Path,
    options: PredictionOptions = DEFAULT_OPTIONS,
) -> None:
    """Predicts the probability that each text matches an image, in descending order.

    Args:
        image: The image.
        texts: One or more.
        model: A pretrained run.
        options: The options that these commands share.

    Examples:
        comodal align beach.jpg "a dog on a beach" "a cat on a sofa" --model run/
    """
    pipeline, encoded_image, draw = encode_image_file(image, model, options)
    predictions = sorted(pipeline.score(encoded_image, texts), key=lambda prediction: -prediction.probability)
    draw(
        encoded_image,
        [TextPredictions(prediction.text, [prediction._replace(text=MATCH_DESCRIPTION)]) for prediction in predictions],
    )
    print_predictions(predictions, options.json)


@flatten_parameters
def ground(
    image: Path,
    phrase: str,
    model: Path,
    out: Path | None = None,
    top_k: int = 1,
    options: PredictionOptions = DEFAULT_OPTIONS,
) -> None:
    """Finds the box that a phrase refers to in an image: left, top, right, bottom in pixels.

    Args:
        image: The image.
        phrase: A referring expression.
        model: A run that was fine-tuned by `comodal train grounding`.
        out: A PNG of the image with the box drawn on it.
        top_k: Number of boxes.
        options: The options that these commands share.

    Examples:
        comodal ground street.jpg "the left dog" --model runs/grounding --out dog.png
    """
    pipeline, encoded_image, draw = encode_image_file(image, model, options)
    grounded_boxes = pipeline.ground(encoded_image, phrase, top_k)
    draw(encoded_image, [TextPredictions(phrase, grounded_boxes)])
    print_grounded_boxes(grounded_boxes, options.json)
    if out is not None:
        figure = import_object("comodal.inference.figures.draw_boxes:draw_grounded_boxes")(
            encoded_image, grounded_boxes, phrase
        )
        with write_atomically(out) as path:
            figure.savefig(path, format="png", dpi=120)


@flatten_parameters
def caption(
    image: Path,
    model: Path,
    sampling: SamplingOptions = DEFAULT_SAMPLING,
    options: PredictionOptions = DEFAULT_OPTIONS,
) -> None:
    """Samples captions of an image by iterative unmasking and Gibbs sampling, with the probability that each matches.

    Args:
        image: The image.
        model: A pretrained run.
        sampling: How captions are sampled.
        options: The options that these commands share.

    Examples:
        comodal caption beach.jpg --model run/ --num-tokens 9 --num-samples 10 --seed 3
    """
    pipeline, encoded_image, draw = encode_image_file(image, model, options)
    predictions = pipeline.caption(encoded_image, sampling)
    draw(
        encoded_image,
        [TextPredictions(prediction.text, [prediction._replace(text=MATCH_DESCRIPTION)]) for prediction in predictions],
    )
    print_predictions(predictions, options.json)


def encode_image_file(
    image: Path, model: Path, options: PredictionOptions
) -> tuple[VisionLanguagePipeline, EncodedImage, AttentionDrawing]:
    """The model, the encoded image, and the function that draws attention where `explain` is given."""
    pipeline = load_vision_language(model, options.device, options.precision)
    draw = create_attention_drawing(options.explain, pipeline)
    return pipeline, pipeline.encode_image(image, read_box_corners(options.boxes)), draw


def create_attention_drawing(out: Path | None, pipeline: VisionLanguagePipeline) -> AttentionDrawing:
    """A function that draws the attention of tokens to a file (`AttentionExplainer`); it does nothing without a file.

    Raises:
        ValueError: The file type is not supported.
        DataError: The model has no attention between tokens and regions.
    """
    if out is None:
        return lambda _encoded_image, _questions: None
    return import_object("comodal.inference.explain:AttentionExplainer")(out, pipeline)


def print_grounded_boxes(boxes: list[GroundedBox], as_json: bool) -> None:
    """Prints boxes as text or as JSON."""
    if as_json:
        print_json([box._asdict() for box in boxes])
        return
    for box in boxes:
        sides = " ".join(f"{side:.1f}" for side in box.box)
        print_line(f"{box.probability:6.3f}  {sides}")
