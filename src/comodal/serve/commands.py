"""`comodal ask`, `fill`, `align` and `ground`: one image, one line."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comodal.console import say, say_json
from comodal.files import whole
from comodal.hardware import DeviceName, Precision
from comodal.serve.answer import Place, Seen, corners, load, show
from comodal.serve.explain import Question, check_explanation, explain_to

BELONGS = "belongs to the picture"


def ask(
    image: Path,
    question: str,
    model: Path,
    boxes: Path | None = None,
    top: int = 5,
    json: bool = False,
    explain: Path | None = None,
    device: DeviceName = "auto",
    precision: Precision = "auto",
) -> None:
    """Answers a question about a picture, with how likely each answer is.

    Args:
        image: The picture.
        question: In words.
        model: A run that was fine-tuned by `comodal train vqa`.
        boxes: Where the model has learnt from given boxes: a JSON list of [left, top, right, bottom].
        top: How many answers.
        json: Print JSON.
        explain: Also draw what each word looks at (attention): a .png or .svg, or a page (.html) of every layer.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Examples:
        comodal ask kitchen.jpg "what is on the table?" --model runs/vqa --explain why.html
    """
    answerer = load(model, device, precision)
    check_explanation(answerer, explain)
    seen = answerer.see(image, corners(boxes))
    guesses = answerer.ask(seen, question, top)
    explain_to(explain, answerer, seen, [Question(question, guesses)])
    show(guesses, json)


def fill(
    image: Path,
    text: str,
    model: Path,
    boxes: Path | None = None,
    top: int = 5,
    json: bool = False,
    explain: Path | None = None,
    device: DeviceName = "auto",
    precision: Precision = "auto",
) -> None:
    """Fills the [MASK]s of a sentence about a picture.

    Args:
        image: The picture.
        text: A sentence with one [MASK] or more.
        model: A pretrained run.
        boxes: Where the model has learnt from given boxes: a JSON list of [left, top, right, bottom].
        top: How many words for each.
        json: Print JSON.
        explain: Also draw what each word looks at (attention): a .png or .svg, or a page (.html) of every layer.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Examples:
        comodal fill meadow.jpg "a [MASK] on the grass" --model run/
    """
    answerer = load(model, device, precision)
    check_explanation(answerer, explain)
    seen = answerer.see(image, corners(boxes))
    found = answerer.fill(seen, text, top)
    best_first = [guess for guesses in zip(*found, strict=True) for guess in guesses]
    explain_to(explain, answerer, seen, [Question(text, best_first)])
    for guesses in found:
        show(guesses, json)


def align(
    image: Path,
    texts: list[str],
    model: Path,
    boxes: Path | None = None,
    json: bool = False,
    explain: Path | None = None,
    device: DeviceName = "auto",
    precision: Precision = "auto",
) -> None:
    """How likely each of some texts belongs to a picture, the likeliest first.

    Args:
        image: The picture.
        texts: One or more.
        model: A pretrained run.
        boxes: Where the model has learnt from given boxes: a JSON list of [left, top, right, bottom].
        json: Print JSON.
        explain: Also draw what each word looks at (attention): a .png or .svg, or a page (.html) of every layer.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Examples:
        comodal align beach.jpg "a dog on a beach" "a cat on a sofa" --model run/
    """
    answerer = load(model, device, precision)
    check_explanation(answerer, explain)
    seen = answerer.see(image, corners(boxes))
    found = sorted(answerer.align(seen, texts), key=lambda guess: -guess.probability)
    explain_to(explain, answerer, seen, [Question(guess.text, [guess._replace(text=BELONGS)]) for guess in found])
    show(found, json)


def ground(
    image: Path,
    phrase: str,
    model: Path,
    boxes: Path | None = None,
    out: Path | None = None,
    top: int = 1,
    json: bool = False,
    explain: Path | None = None,
    device: DeviceName = "auto",
    precision: Precision = "auto",
) -> None:
    """Finds what a phrase means in a picture: left, top, right, bottom in pixels.

    Args:
        image: The picture.
        phrase: As one would say it.
        model: A run that was fine-tuned by `comodal train grounding`.
        boxes: Where the model has learnt from given boxes: a JSON list of [left, top, right, bottom].
        out: A PNG of the picture with the box drawn on it.
        top: How many boxes.
        json: Print JSON.
        explain: Also draw what each word looks at (attention): a .png or .svg, or a page (.html) of every layer.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Examples:
        comodal ground street.jpg "the left dog" --model runs/grounding --out dog.png
    """
    answerer = load(model, device, precision)
    check_explanation(answerer, explain)
    seen = answerer.see(image, corners(boxes))
    places = answerer.ground(seen, phrase, top)
    explain_to(explain, answerer, seen, [Question(phrase, places)])
    show_places(places, json)
    if out is not None:
        with whole(out) as path:
            draw(seen, places, phrase).savefig(path, format="png", dpi=120)


def show_places(places: list[Place], as_json: bool) -> None:
    """Prints boxes for people, or as JSON."""
    if as_json:
        say_json([place._asdict() for place in places])
        return
    for place in places:
        sides = " ".join(f"{side:.1f}" for side in place.box)
        say(f"{place.probability:6.3f}  {sides}")


def draw(seen: Seen, places: list[Place], phrase: str) -> Figure:
    """The picture with the boxes."""
    height, width = seen.picture.shape[:2]
    figure = Figure(figsize=(6, 0.4 + 6 * height / width), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(seen.picture)
    axes.set_axis_off()
    axes.set_title(phrase, fontsize=10)
    for place in places:
        left, top, right, bottom = place.box
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#d9a441", linewidth=2))
        axes.text(left, top, f"{place.probability:.2f}", color="white", backgroundcolor="#00000080", fontsize=8)
    return figure
