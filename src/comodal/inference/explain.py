"""`--explain FILE` of `ask`, `fill`, `align` and `ground`: the model's attention, drawn over the picture.

The answers are those of the usual path; the attention is of the same text beside the same picture (ViLBERT, section
3.1).
"""

from collections.abc import Sequence
from pathlib import Path

from comodal.analysis.co_attention import AttentionExample, attend, draw_attention, need_co_attention
from comodal.analysis.pages.attention_page import write_attention
from comodal.files import whole
from comodal.inference.vision_language import (
    AnsweredQuestion,
    EncodedImage,
    GroundedBox,
    Prediction,
    VisionLanguagePipeline,
)

FIGURES = {".png": "png", ".svg": "svg"}
TOLD = 3  # answers beside a figure; a page has all


class AttentionExplainer:
    """What draws the words of questions to a file; refuses before anything is computed.

    Args:
        out: A figure, or a page.
        answerer: The model.

    Raises:
        ValueError: The file is of no kind that is drawn.
        DataError: The model has no attention between words and regions.
    """

    def __init__(self, out: Path, answerer: VisionLanguagePipeline) -> None:
        if out.suffix not in {*FIGURES, ".html"}:
            raise ValueError(f"--explain {out}: name a figure (.png or .svg) or a page (.html)")
        need_co_attention(answerer.vilbert, answerer.folder)
        self.out, self.answerer = out, answerer

    def __call__(self, seen: EncodedImage, questions: Sequence[AnsweredQuestion]) -> None:
        """Draws what the words of each question look at."""
        shown = [example_of(self.answerer, seen, question) for question in questions]
        if self.out.suffix == ".html":
            rows = [[(named(answer), answer.probability) for answer in question.answers] for question in questions]
            write_attention(self.out, shown, rows)
            return
        with whole(self.out) as path:
            draw_attention(shown).savefig(path, format=FIGURES[self.out.suffix], dpi=110)


def example_of(answerer: VisionLanguagePipeline, seen: EncodedImage, question: AnsweredQuestion) -> AttentionExample:
    """The attention of one text; the words to be filled in are shown first."""
    pieces = answerer.words.encode(question.text)
    _, layers = attend(answerer.vilbert, pieces, seen.prefix)
    names = [answerer.words.vocabulary[piece] for piece in pieces]
    inner = range(1, len(pieces) - 1)  # between [CLS] and [SEP]
    shown = sorted(inner, key=lambda place: pieces[place] != answerer.words.mask)
    told = "\n".join(f"{answer.probability:.2f} {named(answer)[:34]}" for answer in question.answers[:TOLD])
    return AttentionExample(question.text, told, seen.picture, seen.boxes, names, layers, shown, pointed(question))


def named(answer: Prediction | GroundedBox) -> str:
    """An answer in words."""
    return answer.text if isinstance(answer, Prediction) else "box " + ", ".join(f"{side:.0f}" for side in answer.box)


def pointed(question: AnsweredQuestion) -> tuple[float, ...] | None:
    """The box that a phrase most likely means."""
    boxes = [answer.box for answer in question.answers if isinstance(answer, GroundedBox)]
    return boxes[0] if boxes else None
