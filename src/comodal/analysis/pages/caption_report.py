"""The parts of a report about a ViLBERT: curves of its three tasks, retrieval, and co-attention."""

import html
from pathlib import Path

from comodal.analysis.co_attention import draw_attention, select_attention_examples
from comodal.analysis.pages.curves import draw_task_accuracies
from comodal.analysis.pages.html_page import embed_figure, format_run_header, format_section
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.text_files import read_json_object, read_log

OBJECTIVE_TITLES = {"word": "hidden words", "region": "hidden regions", "alignment": "alignment"}


def build_caption_parts(
    run: Path, model: ViLBERT, regions: Path | None, captions: Path | None, images: Path | None, results: list[Path]
) -> list[str]:
    """Header and curves; with the files given, also retrieval scores and attention over the images."""
    parts = [
        format_run_header(
            run,
            "From images with captions alone: hidden words, hidden regions, and whether a caption belongs to an image.",
            "alignment_accuracy",
            "alignment of held-out pairs (chance: 0.5)",
        ),
        format_section(
            "Learning",
            "Accuracy of the three tasks, on training and on held-out pairs.",
            embed_figure(
                draw_task_accuracies(read_log(run / "metrics.jsonl"), OBJECTIVE_TITLES), "accuracy of each task by step"
            ),
        ),
    ]
    parts += [format_retrieval_table(folder) for folder in results]
    if regions is not None and captions is not None and images is not None:
        shown = select_attention_examples(model, run, regions, captions, images)
        text = (
            "Held-out pictures with one of their captions. Beside each, the words that stand out by where they look: "
            "the brighter a region, the more the word attends to it in the last co-attention layer (mean of its heads)."
        )
        parts.append(
            format_section(
                "Where words look", text, embed_figure(draw_attention(shown), "attention of words to regions")
            )
        )
    return parts


def format_retrieval_table(folder: Path) -> str:
    """The table of a retrieval evaluation."""
    found = read_json_object(folder / "results.json")
    rows = []
    for direction in ("text_to_image", "image_to_text"):
        for system, prefix in (("trained", "retrieval"), *((s, f"retrieval.{s}") for s in ("untrained", "chance"))):
            recalls = (found[f"{prefix}.{direction}.r{cut}"] for cut in (1, 5, 10))
            cells = "".join(f'<td class="number">{value:.3f}</td>' for value in recalls)
            name = html.escape(direction.replace("_", " "))
            rows.append(f'<tr class="{system}"><td>{name}</td><td>{system}</td>{cells}</tr>')
    head = "<tr><th>direction</th><th>model</th><th>R@1</th><th>R@5</th><th>R@10</th></tr>"
    text = (
        f"Zero-shot retrieval among {found['retrieval.images']:.0f} held-out images with "
        f"{found['retrieval.captions']:.0f} captions: recall by the alignment score alone."
    )
    return format_section("Finding images by captions", text, f"<table>{head}{''.join(rows)}</table>")
