"""The sections of a report about a ViLBERT: curves of its three tasks, retrieval, and co-attention.

A report about a dual encoder has the curves and the results cards.
"""

from pathlib import Path

from comodal.analysis.co_attention import draw_attention, select_attention_examples
from comodal.analysis.pages.curves import draw_curves, draw_task_accuracies
from comodal.analysis.pages.page_parts import PageColumn, PageRow, PageSection, PageTable, embed_figure
from comodal.analysis.pages.run_sections import ReportInputs, build_run_header, refuse_inputs
from comodal.analysis.pages.score_tables import build_card_table
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.text_files import read_json_object, read_log

OBJECTIVE_TITLES = {"token": "masked tokens", "region": "masked regions", "alignment": "image-text alignment"}
RETRIEVAL_SYSTEMS = {
    "trained": ("retrieval", "trained network"),
    "untrained": ("retrieval.untrained", "untrained network"),
    "chance_level": ("retrieval.chance_level", "random baseline"),
}
RETRIEVAL_DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}


def build_caption_parts(
    run: Path, model: ViLBERT, regions: Path | None, captions: Path | None, images: Path | None, results: list[Path]
) -> list[PageSection]:
    """Header and curves; with the files given, also retrieval scores and attention over the images."""
    curves = draw_task_accuracies(read_log(run / "metrics.jsonl"), OBJECTIVE_TITLES)
    sections = [
        build_run_header(
            run,
            "ViLBERT: pretraining on images with captions",
            "Pretrained without labels, on masked tokens, masked regions and image-text alignment.",
            "alignment_accuracy",
            "alignment accuracy on held-out pairs (chance level: 0.5)",
        ),
        PageSection(
            "Training",
            "Accuracy of the three pretraining tasks, on training and on held-out pairs.",
            [embed_figure(curves, "accuracy of each task by step")],
        ),
        *map(build_retrieval_section, results),
    ]
    if regions is not None and captions is not None and images is not None:
        examples = select_attention_examples(model, run, regions, captions, images)
        text = (
            "Held-out images with one of their captions. Each row shows the tokens whose attention differs most from "
            "the average. The brighter a region, the more the token attends to it in the last co-attention layer (mean "
            "of its heads)."
        )
        drawn = embed_figure(draw_attention(examples), "attention of tokens to regions")
        sections.append(PageSection("Attention of tokens to regions", text, [drawn]))
    return sections


def build_retrieval_section(folder: Path) -> PageSection:
    """The table of a retrieval evaluation."""
    found = read_json_object(folder / "results.json")
    columns = [PageColumn("direction"), PageColumn("network")]
    columns += [PageColumn(f"R@{cut}", "number") for cut in (1, 5, 10)]
    rows = []
    for direction, title in RETRIEVAL_DIRECTIONS.items():
        for system, (prefix, name) in RETRIEVAL_SYSTEMS.items():
            recalls = [f"{found[f'{prefix}.{direction}.r{cut}']:.3f}" for cut in (1, 5, 10)]
            rows.append(PageRow((title, name, *recalls), is_main=system == "trained"))
    text = (
        f"Zero-shot caption-based retrieval among {found['retrieval.images']:.0f} held-out images with "
        f"{found['retrieval.captions']:.0f} captions."
    )
    return PageSection("Caption-based image retrieval", text, [PageTable(f"Recall: {folder.name}", columns, rows)])


def build_dual_encoder_parts(run: Path, inputs: ReportInputs) -> list[PageSection]:
    """Header, curves and results cards.

    Raises:
        DataError: Files are given that such a report does not read.
    """
    refuse_inputs(
        run,
        "a dual encoder",
        {
            "--data": inputs.data,
            "--captions": inputs.captions,
            "--images": inputs.images,
            "--ground-truth": inputs.ground_truth,
        },
    )
    curves = draw_curves(read_log(run / "metrics.jsonl"), chance_level=None)
    return [
        build_run_header(
            run,
            "Dual encoder: one vector for a text and one for an image",
            "Trained on images with captions, by a contrastive loss.",
            "accuracy",
            "accuracy within a batch of held-out pairs",
        ),
        PageSection(
            "Training",
            "A caption must find its image in the batch, and an image its caption.",
            [embed_figure(curves, "loss and accuracy by step")],
        ),
        *map(build_card_table, inputs.results),
    ]
