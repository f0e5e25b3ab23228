"""`comodal report`: one self-contained HTML page about a run."""

import html
from pathlib import Path

from comodal.analysis.pages.caption_report import build_caption_parts
from comodal.analysis.pages.curves import draw_curves
from comodal.analysis.pages.html_page import (
    embed_figure,
    embed_png,
    format_run_header,
    format_run_settings,
    format_section,
    write_page,
)
from comodal.analysis.pages.localization_report import build_localization_parts
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
from comodal.tasks.evaluation.results_card import CARD_FILE, format_interval, format_number, read_card
from comodal.text_files import read_json_object, read_log


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
        comodal report RUN report.html --data shards/ --results results/esc10 results/pictures
        comodal report RUN report.html --data shards/ --truth playground/worlds.jsonl
        comodal report RUN report.html --data regions/ --captions captions.jsonl --images images/
        comodal report runs/vqa report.html --images images/
    """
    parts = build_run_parts(run, data, results, captions, images, pairs, seed, truth, moments, device, precision)
    write_page(out, f"{run.name}: what was learned", parts)


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
) -> list[str]:
    """The parts of a page about a run; the parameters are those of `write_report`."""
    refuse_packed_run(run)
    if not (run / "metrics.jsonl").is_file():
        raise DataError(f"{run}: no run here (no metrics.jsonl)")
    compute = resolve_compute(device, precision)
    model = load_model(run).to(compute.device) if (run / "model").is_dir() else None
    measured = [
        folder for folder in results or [] if (folder / "results.json").is_file() or not has_results_card(folder)
    ]
    cards = [format_card_table(folder) for folder in results or [] if folder not in measured]
    if isinstance(model, ViLBERT):
        retrieved = [
            folder
            for folder in measured
            if not has_results_card(folder) or read_card(folder / CARD_FILE)["task"] == "retrieval"
        ]
        cards = [format_card_table(folder) for folder in results or [] if folder not in retrieved]
        with compute.autocast():
            parts = build_caption_parts(run, model, data, captions, images, retrieved)
        return [*parts, *cards, format_run_settings(run)]
    if isinstance(model, TaskModel):
        if data or captions or truth:
            raise DataError(
                f"{run} was fine-tuned for a task: `comodal ask --explain` and its like show what it looks at, and "
                "--images FOLDER shows examples that it was validated on"
            )
        return [
            *build_task_parts(run, images, compute),
            *map(format_card_table, results or []),
            format_run_settings(run),
        ]
    parts = [
        format_run_header(
            run,
            "From videos alone: does this image correspond to this audio? No label was used.",
            "accuracy",
            "accuracy on held-out pairs (chance: 0.5)",
        ),
        build_curves_part(run),
    ]
    if measured:
        parts += [build_scores_part(measured), build_confusion_part(measured)]
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
    return [*parts, format_run_settings(run)]


def has_results_card(folder: Path) -> bool:
    return (folder / CARD_FILE).is_file()


def format_card_table(folder: Path) -> str:
    """A results card as a table."""
    found = read_card(folder / CARD_FILE)
    rows = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="number">{format_number(score["value"])}</td>'
        f'<td class="number">{format_interval(score)}</td><td class="number">{format_number(score["paper"])}</td></tr>'
        for name, score in found["scores"].items()
    )
    head = "<tr><th>score</th><th>value</th><th>95 %</th><th>paper</th></tr>"
    counted = ", ".join(f"{name} {count:,}" for name, count in found["counts"].items())
    text = f"Of {found['model']}. {counted}" + (f". Regions: {found['regions']}" if found["regions"] else "")
    return format_section(f"{found['title']}, {found['split']}", text, f"<table>{head}{rows}</table>")


def find_validation_split(data: Path) -> Path:
    """The held-out split of a folder of shards, or the folder itself if it is a split."""
    return next((data / name for name in ("validation", "test") if any((data / name).glob("*.index"))), data)


def build_curves_part(run: Path) -> str:
    """Loss and accuracy by step. For a training loss over all pairs of a batch, shows the pair loss of validation."""
    lines = [line | {"loss": line.get("pair_loss", line["loss"])} for line in read_log(run / "metrics.jsonl")]
    figure = draw_curves(lines)
    text = "The pretext task: does a frame correspond to a second of audio? Half of the pairs do."
    return format_section("Learning", text, embed_figure(figure, "loss and accuracy by step"))


def build_scores_part(results: list[Path]) -> str:
    """The systems of each evaluation: the trained model compared with its baselines."""
    rows = []
    for folder in results:
        found = read_json_object(folder / "results.json")
        for name in [key.removesuffix(".low") for key in found if key.endswith(".low")]:
            system = name.removesuffix(".top5").split(".")[-1]
            label = f"{system}, top-5" if name.endswith(".top5") else system
            interval = f"{found[f'{name}.low']:.3f} to {found[f'{name}.high']:.3f}"
            rows.append(
                f'<tr class="{html.escape(system)}"><td>{html.escape(folder.name)}</td><td>{html.escape(label)}</td>'
                f'<td class="number">{found[name]:.3f}</td><td class="number">{interval}</td>'
                f'<td><div class="bar"><span style="width:{100 * found[name]:.1f}%"></span></div></td></tr>'
            )
    head = "<tr><th>task</th><th>features</th><th>accuracy</th><th>95 %</th><th></th></tr>"
    text = "A linear classifier on frozen features: of this network, of an untrained one, and plain ones."
    return format_section("What the features are good for", text, f"<table>{head}{''.join(rows)}</table>")


def build_confusion_part(results: list[Path]) -> str:
    """The confusion matrices of the trained features."""
    figures = [
        f"<figure>{embed_png((folder / 'confusion.png').read_bytes(), f'confusion matrix of {folder.name}')}"
        f"<figcaption>{html.escape(folder.name)}</figcaption></figure>"
        for folder in results
        if (folder / "confusion.png").is_file()
    ]
    text = "Rows are true classes, columns are predictions from the trained features."
    return format_section("Which classes are confused", text, f'<div class="pair">{"".join(figures)}</div>')


def build_predictions_part(model: L3Net, split: Path, pairs: int, seed: int) -> str:
    """Held-out pairs with the model's predictions."""
    found = predict_pairs(model, split, pairs, seed)
    text = f"Of {len(found.together)} held-out pairs drawn for this page, {found.accuracy:.1%} are correct (green)."
    body = embed_figure(draw_pair_predictions(model, found), "pairs with predictions") + embed_figure(
        draw_probability_histogram(found), "P(together)"
    )
    return format_section("Correspondence of held-out pairs", text, body)
