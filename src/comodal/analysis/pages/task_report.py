"""The parts of a report about a model that was fine-tuned for a vision-and-language task."""

from pathlib import Path

from comodal.analysis.pages.curves import draw_curves
from comodal.analysis.pages.html_page import embed_figure, format_run_header, format_section
from comodal.analysis.pages.task_examples import build_example_parts
from comodal.errors import RecipeError
from comodal.hardware import Compute
from comodal.models.checkpoint import read_model_config
from comodal.text_files import read_log, read_yaml

TASK_TITLES = {
    "vqa": "questions about pictures (VQA)",
    "gqa": "questions about scenes (GQA)",
    "visual_genome": "questions about pictures (Visual Genome)",
    "vcr": "visual commonsense reasoning (VCR)",
    "grounding": "referring expressions",
    "phrases": "phrases of captions (Flickr30k Entities)",
    "retrieval": "caption-based image retrieval",
    "nlvr2": "statements about two pictures (NLVR2)",
    "entailment": "visual entailment (SNLI-VE)",
}
START_DESCRIPTIONS = {"pretrained": "from the weights of {}", "scratch": "from chance, with the network of {}"}


def build_task_parts(run: Path, images: Path | None, compute: Compute) -> list[str]:
    """Header and curves; with the folder of its images, also examples with predictions."""
    told, about = read_yaml(run / "config.yaml", RecipeError), read_model_config(run / "model")["about"]
    task = str(about.get("recipe")) if isinstance(about, dict) else ""
    begun = START_DESCRIPTIONS.get(str(told.get("start")), "").format(Path(str(told.get("model"))).name)
    blank = told.get("blank", "nothing")
    without = "" if blank == "nothing" else f", without the {blank}"
    sentence = f"Fine-tuned on labels: {TASK_TITLES.get(task, task)}; begun {begun}{without}."
    chosen = about.get("chosen") if isinstance(about, dict) else None
    if isinstance(chosen, dict):  # the best weights; the accuracy of the last ones is shown below
        sentence += f" The model is that of step {chosen['step']:,}: accuracy {chosen['accuracy']:.3f} on validation."
    lines = read_log(run / "metrics.jsonl")
    return [
        format_run_header(run, sentence, "accuracy", "accuracy on validation examples at the end"),
        format_section(
            "Learning",
            "Loss and accuracy on the examples that it learns from, and on validation examples where there are any.",
            embed_figure(draw_curves(lines, chance=None), "loss and accuracy by step"),
        ),
        *(build_example_parts(run, task, images, compute) if images is not None else []),
    ]
