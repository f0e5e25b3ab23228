"""`comodal report`: one self-contained HTML page about a run."""

from pathlib import Path

from comodal.analysis.pages.caption_report import build_caption_parts
from comodal.analysis.pages.curves import draw_curves
from comodal.analysis.pages.html_page import write_page
from comodal.analysis.pages.localization_report import build_localization_parts
from comodal.analysis.pages.page_parts import PageSection, embed_figure
from comodal.analysis.pages.run_sections import build_run_header, build_run_settings
from comodal.analysis.pages.score_tables import build_card_table, build_confusion_parts, build_scores_part
from comodal.analysis.pages.task_report import build_task_parts
from comodal.analysis.pages.unit_report import build_unit_parts
from comodal.analysis.pair_predictions import draw_pair_predictions, draw_probability_histogram, predict_pairs
from comodal.analysis.pointing_game import read_pointing_scenes
from comodal.analysis.unit_activations import read_clip_moments
from comodal.errors import DataError
from comodal.hardware import DeviceName, Precision, resolve_compute
from comodal.models.checkpoint import load_model, refuse_packed_run
from comodal.models.l3net.l3net import L3Net
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.tasks.evaluation.results_card import CARD_FILE, read_card
from comodal.text_files import read_log


def write_report(
    run: Path,
    out: Path,
    data: Path | None = None,
    results: list[Path] | None = None,
    captions: Path | None = None,
    images: Path | None = None,
    pairs: int = 64,
    seed: int = 1,
    truth: Path | None = None,
    moments: int = 400,
    device: DeviceName = "auto",
    precision: Precision = "auto",
) -> None:
    """Writes one HTML page about a run: curves, scores, predictions for held-out pairs, the inputs that activate single
    units (with audio to play), their selectivity for classes, and sound source localization.

    Args:
        run: the run's folder.
        out: the page to write.
        data: training or other data: shards, for predictions on pairs and activations of units; or a region store.
        results: folders that `evaluate ... --out` wrote, with or without results cards.
        captions: of a ViLBERT's region store, for its attention between tokens and regions.
        images: the folder of the images of the region store or of the task's run, for examples.
        pairs: number of held-out pairs with predictions.
        seed: of the pairs, and of the untrained network that serves as the baseline.
        truth: `worlds.jsonl` of synthetic data, with the boxes of the objects that sound; localization is scored by it.
        moments: maximum number of clips that units and positions are studied on.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Raises:
        DataError: the run, its data or the results are missing or do not match.

    Examples:
        comodal report RUN report.html --data shards/ --results '[results/esc10, results/pictures]'
        comodal report RUN report.html --data shards/ --truth playground/worlds.jsonl
        comodal report RUN report.html --data regions/ --captions captions.jsonl --images images/
        comodal report runs/vqa report.html --images images/
    """
    parts = build_run_parts(run, data, results, captions, images, pairs, seed, truth, moments, device, precision)
    write_page(out, f"Report: {run.name}", parts)


def build_run_parts(
    run: Path,
    data: Path | None = None,
    results: list[Path] | None = None,
    captions: Path | None = None,
    images: Path | None = None,
    pairs: int = 64,
    seed: int = 1,
    truth: Path | None = None,
    moments: int = 400,
    device: DeviceName = "auto",
    precision: Precision = "auto",
) -> list[PageSection]:
    """The sections of a page about a run; the parameters are those of `write_report`."""
    refuse_packed_run(run)
    if not (run / "metrics.jsonl").is_file():
        raise DataError(f"{run}: no run here (no metrics.jsonl)")
    compute = resolve_compute(device, precision)
    model = load_model(run).to(compute.device) if (run / "model").is_dir() else None
    measured = [
        folder for folder in results or [] if (folder / "results.json").is_file() or not has_results_card(folder)
    ]
    cards = [build_card_table(folder) for folder in results or [] if folder not in measured]
    if isinstance(model, ViLBERT):
        retrieved = [
            folder
            for folder in measured
            if not has_results_card(folder) or read_card(folder / CARD_FILE)["task"] == "retrieval"
        ]
        cards = [build_card_table(folder) for folder in results or [] if folder not in retrieved]
        with compute.autocast():
            parts = build_caption_parts(run, model, data, captions, images, retrieved)
        return [*parts, *cards, build_run_settings(run)]
    if isinstance(model, TaskModel):
        if data or captions or truth:
            raise DataError(
                f"{run} was fine-tuned for a task: `comodal ask --explain` and its like show what it looks at, and "
                "--images FOLDER shows examples that it was validated on"
            )
        return [
            *build_task_parts(run, images, compute),
            *map(build_card_table, results or []),
            build_run_settings(run),
        ]
    parts = [
        build_run_header(
            run,
            "L3-Net: audio-visual correspondence",
            "Trained on videos without labels: do an image and a second of audio correspond?",
            "accuracy",
            "accuracy on held-out pairs (chance level: 0.5)",
        ),
        build_curves_part(run),
    ]
    if measured:
        parts += [build_scores_part(measured), *build_confusion_parts(measured)]
    parts += cards
    if data is not None:
        if not isinstance(model, L3Net):
            raise DataError(f"{run}: no model that pairs and units could be shown of")
        split = find_validation_split(data)
        with compute.autocast():
            studied = read_clip_moments(split, model, moments)
            scenes = read_pointing_scenes(split, truth, model, moments) if truth is not None else []
            parts += [build_predictions_part(model, split, pairs, seed), *build_unit_parts(model, studied, seed)]
            parts += build_localization_parts(model, studied, scenes, seed)
    return [*parts, build_run_settings(run)]


def has_results_card(folder: Path) -> bool:
    return (folder / CARD_FILE).is_file()


def find_validation_split(data: Path) -> Path:
    """The held-out split of a folder of shards, or the folder itself if it is a split."""
    return next((data / name for name in ("validation", "test") if any((data / name).glob("*.index"))), data)


def build_curves_part(run: Path) -> PageSection:
    """Loss and accuracy by step. For a training loss over all pairs of a batch, shows the pair loss of validation."""
    lines = [line | {"loss": line.get("pair_loss", line["loss"])} for line in read_log(run / "metrics.jsonl")]
    text = "The pretext task: does a frame correspond to a second of audio? Half of the pairs are matches."
    return PageSection("Training", text, [embed_figure(draw_curves(lines), "loss and accuracy by step")])


def build_predictions_part(model: L3Net, split: Path, pairs: int, seed: int) -> PageSection:
    """Held-out pairs with the model's predictions."""
    found = predict_pairs(model, split, pairs, seed)
    text = (
        f"Of {len(found.together)} held-out pairs, sampled for this page, {found.accuracy:.1%} are predicted "
        "correctly. Above each image is its probability of correspondence with the audio below it: green if the "
        "prediction is correct, red if not."
    )
    drawn = embed_figure(draw_pair_predictions(model, found), "pairs of image and audio with their predictions")
    histogram = embed_figure(draw_probability_histogram(found), "histogram of the probability of correspondence")
    return PageSection("Correspondence of held-out pairs", text, [drawn, histogram])
