"""`--explain FILE` of `ask`, `fill`, `align` and `ground`: the model's attention, drawn over the image.

The predictions are those without the option. The attention is that of the same text with the same image (ViLBERT,
section 3.1).
"""

from collections.abc import Sequence
from pathlib import Path

from comodal.analysis.co_attention import AttentionExample, check_co_attention, compute_co_attention, draw_attention
from comodal.analysis.pages.attention_page import write_attention_page
from comodal.files import write_atomically
from comodal.inference.vision_language import (
    EncodedImage,
    GroundedBox,
    Prediction,
    TextPredictions,
    VisionLanguagePipeline,
)

FIGURE_FORMATS = {".png": "png", ".svg": "svg"}
MAX_FIGURE_ANSWERS = 3  # answers in a figure; a page has all


class AttentionExplainer:
    """Draws the attention of the tokens of questions to a file; checks the file type and the model first.

    Args:
        out: A figure, or a page.
        pipeline: The model.

    Raises:
        ValueError: The file type is not supported.
        DataError: The model has no attention between tokens and regions.
    """

    def __init__(self, out: Path, pipeline: VisionLanguagePipeline) -> None:
        if out.suffix not in {*FIGURE_FORMATS, ".html"}:
            raise ValueError(f"--explain {out}: name a figure (.png or .svg) or a page (.html)")
        check_co_attention(pipeline.vilbert, pipeline.folder)
        self.out, self.pipeline = out, pipeline

    def __call__(self, encoded_image: EncodedImage, questions: Sequence[TextPredictions]) -> None:
        """Draws the attention of the tokens of each question."""
        examples = [build_attention_example(self.pipeline, encoded_image, question) for question in questions]
        if self.out.suffix == ".html":
            rows = [
                [(format_answer(answer), answer.probability) for answer in question.answers] for question in questions
            ]
            write_attention_page(self.out, examples, rows)
            return
        with write_atomically(self.out) as path:
            draw_attention(examples).savefig(path, format=FIGURE_FORMATS[self.out.suffix], dpi=110)


def build_attention_example(
    pipeline: VisionLanguagePipeline, encoded_image: EncodedImage, question: TextPredictions
) -> AttentionExample:
    """The attention of one text; masked tokens are shown first."""
    token_ids = pipeline.tokenizer.encode(question.text)
    _, layers = compute_co_attention(pipeline.vilbert, token_ids, encoded_image.encoding)
    names = [pipeline.tokenizer.vocabulary[token_id] for token_id in token_ids]
    inner = range(1, len(token_ids) - 1)  # between [CLS] and [SEP]
    displayed = sorted(inner, key=lambda index: token_ids[index] != pipeline.tokenizer.mask_id)
    predictions = "\n".join(
        f"{answer.probability:.2f} {format_answer(answer)[:34]}" for answer in question.answers[:MAX_FIGURE_ANSWERS]
    )
    return AttentionExample(
        question.text,
        predictions,
        encoded_image.image,
        encoded_image.boxes,
        names,
        layers,
        displayed,
        find_likeliest_box(question),
    )


def format_answer(answer: Prediction | GroundedBox) -> str:
    """A prediction as text."""
    return answer.text if isinstance(answer, Prediction) else "box " + ", ".join(f"{side:.0f}" for side in answer.box)


def find_likeliest_box(question: TextPredictions) -> tuple[float, ...] | None:
    """The likeliest box of a phrase."""
    boxes = [answer.box for answer in question.answers if isinstance(answer, GroundedBox)]
    return boxes[0] if boxes else None
