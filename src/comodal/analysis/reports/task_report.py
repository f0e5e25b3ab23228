"""The sections of a report about a model that was fine-tuned for a vision-and-language task."""

from pathlib import Path

from comodal.analysis.pages.page_parts import PageSection, embed_figure
from comodal.analysis.reports.curves import draw_curves
from comodal.analysis.reports.run_sections import build_run_header
from comodal.analysis.reports.task_examples import build_example_parts
from comodal.errors import RecipeError
from comodal.hardware import Compute
from comodal.models.checkpoint import read_model_config
from comodal.text_files import read_metrics, read_yaml

TASK_TITLES = {
    "vqa": "visual question answering (VQA)",
    "gqa": "visual question answering (GQA)",
    "visual_genome": "visual question answering (Visual Genome)",
    "vcr": "visual commonsense reasoning (VCR)",
    "grounding": "referring expressions (RefCOCO)",
    "phrases": "phrase grounding (Flickr30k Entities)",
    "visual7w": "pointing questions (Visual7W)",
    "guesswhat": "the object of a dialog (GuessWhat?!)",
    "retrieval": "caption-based image retrieval",
    "nlvr2": "sentences about two images (NLVR2)",
    "entailment": "visual entailment (SNLI-VE)",
}
START_DESCRIPTIONS = {
    "pretrained": "from the weights of {}",
    "scratch": "from scratch, with the architecture of {}",
}
ABLATION_TITLES = {"image": "image", "text": "text"}


def build_task_parts(run: Path, images: Path | None, compute: Compute) -> list[PageSection]:
    """Header and curves; with the folder of its images, also examples with predictions."""
    settings, about = read_yaml(run / "config.yaml", RecipeError), read_model_config(run / "model")["about"]
    task = str(about.get("recipe")) if isinstance(about, dict) else ""
    start = START_DESCRIPTIONS.get(str(settings.get("start_from")), "").format(Path(str(settings.get("model"))).name)
    ablated = settings.get("ablate", "none")
    ablation_text = "" if ablated == "none" else f", without the {ABLATION_TITLES.get(ablated, ablated)}"
    title = TASK_TITLES.get(task, task)
    sentence = f"Fine-tuned on labels for {title}, {start}{ablation_text}."
    best_checkpoint = about.get("best_checkpoint") if isinstance(about, dict) else None
    if isinstance(best_checkpoint, dict):  # the best weights; the accuracy of the last ones is shown below
        sentence += (
            f" The model is that of step {best_checkpoint['step']:,}: validation accuracy "
            f"{best_checkpoint['accuracy']:.3f}."
        )
    curves = draw_curves(read_metrics(run / "metrics.jsonl"), chance_level=None)
    return [
        build_run_header(
            run, f"ViLBERT: {title}", sentence, "accuracy", "accuracy on validation examples at the last step"
        ),
        PageSection(
            "Training",
            "Loss and accuracy on training examples, and on validation examples if there are any.",
            [embed_figure(curves, "loss and accuracy by step")],
        ),
        *(build_example_parts(run, task, images, compute) if images is not None else []),
    ]
