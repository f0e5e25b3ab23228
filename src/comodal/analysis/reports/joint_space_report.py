"""The sections of a report about a model with a joint embedding space: AVE-Net and the dual encoder."""

from pathlib import Path

from comodal.analysis.pages.page_parts import PageSection, embed_figure
from comodal.analysis.reports.curves import draw_curves
from comodal.analysis.reports.l3net_report import build_curves_part, build_predictions_part, find_validation_split
from comodal.analysis.reports.run_sections import ReportInputs, build_run_header
from comodal.analysis.reports.score_tables import build_card_table
from comodal.errors import DataError
from comodal.hardware import Compute
from comodal.models.ave_net.ave_net import AVENet
from comodal.text_files import read_log


def build_ave_net_parts(run: Path, model: AVENet, inputs: ReportInputs, compute: Compute) -> list[PageSection]:
    """Header, curves and results cards; with shards, also predictions on held-out pairs.

    Raises:
        DataError: Files are given that such a report does not read.
    """
    refuse_inputs(run, "an AVE-Net", {"--captions": inputs.captions, "--ground-truth": inputs.ground_truth})
    name = "AVE-Net" if model.config.comparison == "distance" else "AVOL-Net"
    sections = [
        build_run_header(
            run,
            f"{name}: a joint embedding space of images and audio",
            "Trained on videos without labels: images and audio of one moment get similar embeddings.",
            "accuracy",
            "accuracy on held-out pairs (chance level: 0.5)",
        ),
        build_curves_part(run),
        *map(build_card_table, inputs.results),
    ]
    if inputs.data is not None:
        with compute.autocast():
            split = find_validation_split(inputs.data)
            sections.append(build_predictions_part(model, split, inputs.pairs, inputs.seed))
    return sections


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


def refuse_inputs(run: Path, kind: str, paths: dict[str, Path | None]) -> None:
    """Raises a DataError if a report about this kind of model is given a file that it does not read."""
    given = [flag for flag, path in paths.items() if path is not None]
    if given:
        raise DataError(f"{run} is {kind}: its report does not use {', '.join(given)}")
