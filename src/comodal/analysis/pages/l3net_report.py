"""The sections of a report about an L3-Net: curves, scores, predictions on held-out pairs, units and localization.

A report about an AVE-Net has the curves, the results cards and the predictions.
"""

from collections.abc import Callable
from pathlib import Path

from comodal.analysis.pages.curves import draw_curves
from comodal.analysis.pages.localization_report import build_localization_parts
from comodal.analysis.pages.page_parts import PageSection, embed_figure
from comodal.analysis.pages.run_sections import ReportInputs, build_run_header, refuse_inputs
from comodal.analysis.pages.score_tables import (
    build_card_table,
    build_confusion_parts,
    build_scores_part,
    list_measured_folders,
)
from comodal.analysis.pages.unit_report import build_unit_parts
from comodal.analysis.pair_predictions import draw_pair_predictions, draw_probability_histogram, predict_pairs
from comodal.analysis.pointing_game import read_pointing_scenes
from comodal.analysis.unit_activations import read_clip_examples
from comodal.errors import DataError
from comodal.hardware import Compute
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.l3net.l3net import L3Net
from comodal.progress import track_progress
from comodal.text_files import read_log


def build_l3net_parts(run: Path, model: L3Net | None, inputs: ReportInputs, compute: Compute) -> list[PageSection]:
    """Header, curves and scores; with data, also predictions, units and localization.

    Raises:
        DataError: Data is given, and the run has no model of an L3-Net.
    """
    header = build_run_header(
        run,
        "L3-Net: audio-visual correspondence",
        "Trained on videos without labels: do an image and a second of audio correspond?",
        "accuracy",
        "accuracy on held-out pairs (chance level: 0.5)",
    )
    sections = [header, build_curves_part(run)]
    measured = list_measured_folders(inputs.results)
    if measured:
        sections += [build_scores_part(measured), *build_confusion_parts(measured)]
    sections += [build_card_table(folder) for folder in inputs.results if folder not in measured]
    if inputs.data is not None:
        if model is None:
            raise DataError(f"{run}: no model, so pairs and units cannot be shown")
        with compute.autocast():
            sections += build_data_parts(model, find_validation_split(inputs.data), inputs)
    return sections


def build_data_parts(model: L3Net, split: Path, inputs: ReportInputs) -> list[PageSection]:
    """Predictions on held-out pairs, units and localization, all on clips of one split."""
    studied = read_clip_examples(split, model, inputs.max_clips)
    scenes = []
    if inputs.ground_truth is not None:
        scenes = read_pointing_scenes(split, inputs.ground_truth, model, inputs.max_clips)
    builders: tuple[Callable[[], list[PageSection]], ...] = (
        lambda: [build_predictions_part(model, split, inputs.pairs, inputs.seed)],
        lambda: build_unit_parts(model, studied, inputs.seed),
        lambda: build_localization_parts(model, studied, scenes, inputs.seed),
    )
    return [section for build in track_progress(builders, "report") for section in build()]


def find_validation_split(data: Path) -> Path:
    """The held-out split of a folder of shards, or the folder itself if it is a split."""
    return next((data / name for name in ("validation", "test") if any((data / name).glob("*.index"))), data)


def build_curves_part(run: Path) -> PageSection:
    """Loss and accuracy by step. For a training loss over all pairs of a batch, shows the pair loss of validation."""
    lines = [line | {"loss": line.get("pair_loss", line["loss"])} for line in read_log(run / "metrics.jsonl")]
    text = "The pretext task: does a frame correspond to a second of audio? Half of the pairs are matches."
    return PageSection("Training", text, [embed_figure(draw_curves(lines), "loss and accuracy by step")])


def build_predictions_part(model: L3Net | AVENet, split: Path, pairs: int, seed: int) -> PageSection:
    """Held-out pairs with the model's predictions."""
    predictions = predict_pairs(model, split, pairs, seed)
    text = (
        f"Of {len(predictions.probabilities)} held-out pairs, sampled for this page, {predictions.accuracy:.1%} are "
        f"predicted "
        "correctly. Above each image is its probability of correspondence with the audio below it: green if the "
        "prediction is correct, red if not."
    )
    drawn = embed_figure(draw_pair_predictions(model, predictions), "pairs of image and audio with their predictions")
    histogram = embed_figure(draw_probability_histogram(predictions), "histogram of the probability of correspondence")
    numbers = {"pairs": len(predictions.probabilities), "accuracy": float(predictions.accuracy)}
    return PageSection("Correspondence of held-out pairs", text, [drawn, histogram], numbers)


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
