"""`comodal report`: one self-contained HTML page about a run."""

from pathlib import Path

from comodal.analysis.pages.caption_report import build_caption_parts, build_dual_encoder_parts
from comodal.analysis.pages.html_page import write_page, write_page_numbers
from comodal.analysis.pages.l3net_report import build_ave_net_parts, build_l3net_parts
from comodal.analysis.pages.page_parts import PageSection
from comodal.analysis.pages.run_sections import ReportInputs, build_run_settings
from comodal.analysis.pages.score_tables import build_card_table, list_measured_folders
from comodal.analysis.pages.task_report import build_task_parts
from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import Compute, ComputeOptions
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.checkpoint import load_model, refuse_packed_run
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.models.l3net.l3net import L3Net
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.tasks.evaluation.results_card import CARD_FILE, read_card

RUN_ALONE, AUTOMATIC = ReportInputs(), ComputeOptions()


@flatten_parameters
def write_report(run: Path, out: Path, inputs: ReportInputs = RUN_ALONE, compute: ComputeOptions = AUTOMATIC) -> None:
    """Writes one HTML page about a run: curves, scores, predictions for held-out pairs, units and sound source
    localization. Units are shown with the inputs that activate them (audio is playable) and with their class
    selectivity, and by t-SNE.

    Args:
        run: the run's folder.
        out: the page to write; its numbers are written next to it as JSON (page.html, page.json).
        inputs: what the report is made from besides the run.
        compute: device and precision.

    Raises:
        DataError: the run, its data or the results are missing or do not match.

    Examples:
        comodal report RUN report.html --data shards/ --results results/esc10 results/images
        comodal report RUN report.html --data shards/ --ground-truth world/worlds.jsonl
        comodal report RUN report.html --data regions/ --captions captions.jsonl --images images/
        comodal report runs/vqa report.html --images images/
    """
    sections = build_run_parts(run, inputs, compute.resolve())
    write_page(out, f"Report: {run.name}", sections)
    write_page_numbers(out, sections)


def build_run_parts(run: Path, inputs: ReportInputs, compute: Compute) -> list[PageSection]:
    """The sections of a page about a run.

    Raises:
        DataError: The run, its data or the results are missing or do not match.
    """
    refuse_packed_run(run)
    if not (run / "metrics.jsonl").is_file():
        raise DataError(f"{run}: no run here (no metrics.jsonl)")
    model = load_model(run).to(compute.device) if (run / "model").is_dir() else None
    if isinstance(model, ViLBERT):
        sections = build_vilbert_parts(run, model, inputs, compute)
    elif isinstance(model, TaskModel):
        if inputs.data or inputs.captions or inputs.ground_truth:
            raise DataError(
                f"{run} was fine-tuned for a task: `comodal ask --explain` and similar draw its attention, and "
                "--images FOLDER shows validation examples"
            )
        sections = [*build_task_parts(run, inputs.images, compute), *map(build_card_table, inputs.results)]
    elif isinstance(model, AVENet):
        sections = build_ave_net_parts(run, model, inputs, compute)
    elif isinstance(model, DualEncoder):
        sections = build_dual_encoder_parts(run, inputs)
    else:
        sections = build_l3net_parts(run, model if isinstance(model, L3Net) else None, inputs, compute)
    return [*sections, build_run_settings(run)]


def build_vilbert_parts(run: Path, model: ViLBERT, inputs: ReportInputs, compute: Compute) -> list[PageSection]:
    """The sections about a pretrained ViLBERT: its retrieval evaluations as a comparison, other results as cards."""
    retrieved = [
        folder
        for folder in list_measured_folders(inputs.results)
        if not (folder / CARD_FILE).is_file() or read_card(folder / CARD_FILE)["task"] == "retrieval"
    ]
    cards = [build_card_table(folder) for folder in inputs.results if folder not in retrieved]
    with compute.autocast():
        sections = build_caption_parts(run, model, inputs.data, inputs.captions, inputs.images, retrieved)
    return [*sections, *cards]
