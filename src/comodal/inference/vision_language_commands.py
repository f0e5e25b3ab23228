"""`comodal ask`, `fill`, `align` and `ground`: predictions for one image and a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from comodal.console import print_json, print_line
from comodal.files import write_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import ComputeOptions
from comodal.inference.vision_language import (
    AnsweredQuestion,
    EncodedImage,
    GroundedBox,
    VisionLanguagePipeline,
    load_vision_language,
    print_predictions,
    read_box_corners,
)
from comodal.registry import import_object

MATCH_DESCRIPTION = "corresponds to the image"
AttentionDrawing = Callable[[EncodedImage, Sequence[AnsweredQuestion]], None]


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
    top: int = 5,
    options: PredictionOptions = DEFAULT_OPTIONS,
) -> None:
    """Answers a question about an image, with the probability of each answer.

    Args:
        image: The image.
        question: In natural language.
        model: A run that was fine-tuned by `comodal train vqa`.
        top: Number of answers.
        options: The options that these commands share.

    Examples:
        comodal ask kitchen.jpg "what is on the table?" --model runs/vqa --explain why.html
    """
    answerer, seen, draw = encode_image_file(image, model, options)
    guesses = answerer.ask(seen, question, top)
    draw(seen, [AnsweredQuestion(question, guesses)])
    print_predictions(guesses, options.json)


@flatten_parameters
def fill(
    image: Path,
    text: str,
    model: Path,
    top: int = 5,
    options: PredictionOptions = DEFAULT_OPTIONS,
) -> None:
    """Predicts the [MASK] tokens of a sentence about an image.

    Args:
        image: The image.
        text: A sentence with one or more [MASK] tokens.
        model: A pretrained run.
        top: Number of predictions for each [MASK].
        options: The options that these commands share.

    Examples:
        comodal fill meadow.jpg "a [MASK] on the grass" --model run/
    """
    answerer, seen, draw = encode_image_file(image, model, options)
    found = answerer.fill(seen, text, top)
    best_first = [guess for guesses in zip(*found, strict=True) for guess in guesses]
    draw(seen, [AnsweredQuestion(text, best_first)])
    for guesses in found:
        print_predictions(guesses, options.json)


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
    answerer, seen, draw = encode_image_file(image, model, options)
    found = sorted(answerer.align(seen, texts), key=lambda guess: -guess.probability)
    draw(seen, [AnsweredQuestion(guess.text, [guess._replace(text=MATCH_DESCRIPTION)]) for guess in found])
    print_predictions(found, options.json)


@flatten_parameters
def ground(
    image: Path,
    phrase: str,
    model: Path,
    out: Path | None = None,
    top: int = 1,
    options: PredictionOptions = DEFAULT_OPTIONS,
) -> None:
    """Finds the box that a phrase refers to in an image: left, top, right, bottom in pixels.

    Args:
        image: The image.
        phrase: A referring expression.
        model: A run that was fine-tuned by `comodal train grounding`.
        out: A PNG of the image with the box drawn on it.
        top: Number of boxes.
        options: The options that these commands share.

    Examples:
        comodal ground street.jpg "the left dog" --model runs/grounding --out dog.png
    """
    answerer, seen, draw = encode_image_file(image, model, options)
    places = answerer.ground(seen, phrase, top)
    draw(seen, [AnsweredQuestion(phrase, places)])
    print_grounded_boxes(places, options.json)
    if out is not None:
        figure = import_object("comodal.inference.draw_boxes:draw_grounded_boxes")(seen, places, phrase)
        with write_atomically(out) as path:
            figure.savefig(path, format="png", dpi=120)


def encode_image_file(
    image: Path, model: Path, options: PredictionOptions
) -> tuple[VisionLanguagePipeline, EncodedImage, AttentionDrawing]:
    """The model, the encoded image, and the function that draws attention where `explain` is given."""
    answerer = load_vision_language(model, options.device, options.precision)
    draw = create_attention_drawing(options.explain, answerer)
    return answerer, answerer.see(image, read_box_corners(options.boxes)), draw


def create_attention_drawing(out: Path | None, answerer: VisionLanguagePipeline) -> AttentionDrawing:
    """A function that draws the attention of tokens to a file (`AttentionExplainer`); it does nothing without a file.

    Raises:
        ValueError: The file type is not supported.
        DataError: The model has no attention between tokens and regions.
    """
    if out is None:
        return lambda _seen, _questions: None
    return import_object("comodal.inference.explain:AttentionExplainer")(out, answerer)


def print_grounded_boxes(places: list[GroundedBox], as_json: bool) -> None:
    """Prints boxes as text or as JSON."""
    if as_json:
        print_json([place._asdict() for place in places])
        return
    for place in places:
        sides = " ".join(f"{side:.1f}" for side in place.box)
        print_line(f"{place.probability:6.3f}  {sides}")
