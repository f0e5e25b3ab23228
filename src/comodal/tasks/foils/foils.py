"""Foils: does a model prefer the caption of an image to a text that differs from it in a detail?

VALSE, SugarCrepe, ARO and Winoground (foil_files.py). Nothing is trained. A ViLBERT scores a text and an image by the
log odds of its alignment head, a dual encoder by the cosine. Random scores give the chance level. Two baselines do not
see the image: the same model with the image ablated, and the shorter text. Texts that are unlikely without any image
are solved by them as well (SugarCrepe, section 3).

Departs from the published scripts: the regions of the whole image are used. ARO's script crops VG-Relation's and
VG-Attribution's images; a crop is used where the region store has it under the name IMAGE_X_Y_WIDTH_HEIGHT.
"""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from comodal.console import Table, print_line
from comodal.data.captions.caption_files import Caption
from comodal.data.regions.region_store import RegionStore
from comodal.files import write_bytes_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import Compute
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.progress import track_progress
from comodal.tasks.evaluation.metrics import check_finite_scores, describe_intervals
from comodal.tasks.evaluation.missing_images import (
    INTERVAL_NAME,
    build_score_entries,
    compute_accuracy_metrics,
    count_items,
    format_missing_count,
)
from comodal.tasks.evaluation.results_card import (
    ResultsCard,
    ScoreEntry,
    format_exclusions,
    read_training_settings,
    report_results,
)
from comodal.tasks.foils.foil_files import BENCHMARK_TITLES, Foil, FoilSet, read_foils
from comodal.tasks.foils.foil_metrics import (
    AUROC,
    FOILS_TASK,
    PAIRWISE,
    WINOGROUND_SCORES,
    ScoredFoils,
    compute_chance_levels,
    compute_foil_metrics,
    group_by_subset,
    measure_shorter_text,
)
from comodal.tasks.retrieval.caption_retrieval import check_scoring_model, load_scoring_model
from comodal.tasks.retrieval.dual_encoder_embeddings import embed_gallery
from comodal.tasks.retrieval.gallery import build_gallery, check_model_inputs
from comodal.tasks.retrieval.gallery_ranking import RetrievalModel, select_scoring_head, unwrap_backbone
from comodal.tasks.retrieval.pair_scores import PairScorer, RankingOptions
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.text_image_examples import Ablation
from comodal.tasks.vision_language.vilbert_fine_tuning import EvaluationOptions

PAIRS_PER_BLOCK = 4096
TEXT_ONLY, SHORTER_TEXT = "text_only", "shorter_text"
FOILS_EVALUATION = EvaluationOptions(max_regions=36)


class FoilScorer(NamedTuple):
    """A model with its inputs.

    Attributes:
        model: A ViLBERT, pretrained or fine-tuned for retrieval, or a dual encoder.
        store: The regions of the images.
        tokenizer: The model's tokenizer.
        max_regions: Maximum number of regions of an image.
        compute: Device and precision.
        zero_shot: Whether the alignment head of a fine-tuned model is used.
        task_token: Task token of a 12-in-1 model; by default that of retrieval.
    """

    model: RetrievalModel
    store: RegionStore
    tokenizer: WordPieceTokenizer
    max_regions: int
    compute: Compute
    zero_shot: bool
    task_token: int | None

    @property
    def is_log_odds(self) -> bool:
        """Whether scores are log odds of a match: those of an alignment head, not of a fine-tuned one or a cosine."""
        return not isinstance(self.model, DualEncoder) and select_scoring_head(self.model, self.zero_shot) is None

    def score(
        self, foils: Sequence[Foil], rows: Sequence[Sequence[int | None]], ablate: Ablation
    ) -> list[np.ndarray | None]:
        """The score of each image of a foil with each of its texts, (images, texts); None where an image is missing."""
        pairs = [
            (Caption(foil.images[:1], text, None, foil.key), row)
            for foil, image_rows in zip(foils, rows, strict=True)
            for row in image_rows
            if row is not None and None not in image_rows
            for text in foil.texts
        ]
        backbone = unwrap_backbone(self.model)
        gallery = build_gallery(pairs, self.store, self.tokenizer, backbone.config, self.max_regions, ablate)
        if isinstance(backbone, DualEncoder):
            texts, images = embed_gallery(backbone, gallery, self.compute)
            scores = np.einsum("pd,pd->p", texts[gallery.text_of], images[gallery.image_of])
            check_finite_scores(scores, "similarities of texts and images")
        else:
            head = select_scoring_head(self.model, self.zero_shot)
            self.model.to(self.compute.device)
            scorer = PairScorer(backbone, gallery, self.compute, None, head, self.task_token)
            starts = track_progress(range(0, len(pairs), PAIRS_PER_BLOCK), "scoring pairs")
            blocks = [slice(start, start + PAIRS_PER_BLOCK) for start in starts]
            scores = np.concatenate([scorer.score_pairs(gallery.text_of[one], gallery.image_of[one]) for one in blocks])
        sizes = [
            0 if None in image_rows else len(foil.texts) * len(image_rows)
            for foil, image_rows in zip(foils, rows, strict=True)
        ]
        parts = np.split(scores, np.cumsum(sizes)[:-1])
        return [
            part.reshape(-1, len(foil.texts)) if size else None
            for foil, part, size in zip(foils, parts, sizes, strict=True)
        ]


@flatten_parameters
def evaluate_foils(
    model: Path,
    data: Path,
    regions: Path,
    zero_shot: bool = False,
    evaluation: EvaluationOptions = FOILS_EVALUATION,
) -> dict[str, float]:
    """Reports how often a model prefers the caption of an image to its foils: VALSE, SugarCrepe, ARO, Winoground.

    The benchmark is detected from the content of the files. Items whose image is not in the store count as incorrect.

    Args:
        model: Run or model folder of a ViLBERT (pretrained, or fine-tuned by `comodal train retrieval`), of its
            single-stream baseline or of a dual encoder, with the vocabulary.
        data: An official file, or the folder of the official files of one benchmark.
        regions: The region store of the images, prepared like that of the training.
        zero_shot: Score by pretraining's alignment head, even if the model is fine-tuned for retrieval.
        evaluation: The options of all evaluations of a ViLBERT.
        ablate: Ablate one modality, for a model that was trained with this ablation.
        out: Folder for results.json, foils.csv and the results card; nothing is written without it.

    Returns:
        foils.pairwise_accuracy (VALSE's acc_r) with its interval by image, foils.auroc, and, for an alignment head,
        foils.caption_precision, foils.foil_precision and foils.detection_accuracy (p_c, p_f and acc); the same for
        each subset as foils.subset.NAME and their mean as foils.mean; foils.text_only, foils.shorter_text and
        foils.chance_level. For Winoground foils.text_score, foils.image_score and foils.group_score.

    Raises:
        DataError: A file is missing or damaged, no image is in the store, or the store does not fit the model.
        CheckpointError: There is no ViLBERT and no dual encoder in the folder.

    Examples:
        comodal evaluate foils --model RUN --data VALSE/data --regions valse/ --out results/valse
        comodal evaluate foils --model RUN --data sugar-crepe/data --regions coco_val2017/
        comodal evaluate foils --model DUAL_ENCODER_RUN --data winoground/examples.jsonl --regions winoground/
    """
    start_seconds = time.perf_counter()
    foil_set, trained = read_foils(data), load_scoring_model(model, zero_shot=True)
    check_scoring_model(trained, model, RankingOptions(zero_shot))
    store, tokenizer = RegionStore(regions), WordPieceTokenizer.read(model)
    check_model_inputs(model, unwrap_backbone(trained).config, store, tokenizer)
    compute = evaluation.resolve()
    scorer = FoilScorer(trained, store, tokenizer, evaluation.max_regions, compute, zero_shot, evaluation.task_token)
    foils, (rows, num_crops) = foil_set.foils, find_images(foil_set.foils, store, data)
    scores = scorer.score(foils, rows, evaluation.ablate)
    system = ScoredFoils(foils, scores, scorer.is_log_odds)
    metrics = compute_foil_metrics(foil_set.benchmark, system)
    if not foils[0].images[1:]:
        metrics |= measure_baselines(scorer, system, rows)
    metrics |= {f"chance_level.{name}": value for name, value in compute_chance_levels(foils).items()}
    metrics = {f"{FOILS_TASK}.{name}": value for name, value in metrics.items()}
    metrics[f"{FOILS_TASK}.seconds"] = time.perf_counter() - start_seconds
    build_foil_table(foil_set, metrics).show()
    counts = count_items(len(foils), int(system.has_prediction.sum()))
    print_line(
        f"{data}: {counts['predicted']:,} items{format_exclusions(foil_set.excluded)}{format_missing_count(counts)}"
    )
    settings = {
        "precision": compute.precision,
        "max_regions": evaluation.max_regions,
        "ablate": evaluation.ablate,
        "scores": "cosine" if isinstance(trained, DualEncoder) else "alignment" if scorer.is_log_odds else "fine-tuned",
        **({"cropped images": num_crops} if foils[0].crop else {}),
    }
    card = build_foil_card(foil_set, metrics, counts, model, data, store, settings)
    report_results(metrics, card, evaluation.out)
    if evaluation.out is not None:
        write_foil_scores(evaluation.out / "foils.csv", foils, scores)
    return metrics


def find_images(foils: Sequence[Foil], store: RegionStore, data: Path) -> tuple[list[list[int | None]], int]:
    """The rows of the images of each foil, and how many are the published crop of an image.

    Raises:
        DataError: No image is in the store.
    """
    images, ids = ImageRows(store), {name: row for row, name in enumerate(store.ids)}
    rows: list[list[int | None]] = []
    for foil in foils:
        rows.append([ids[foil.crop]] if foil.crop in ids else [images.find(name) for name in foil.images])
    images.check(data, sum(None not in one for one in rows))
    return rows, sum(foil.crop in ids for foil in foils)


def measure_baselines(
    scorer: FoilScorer, system: ScoredFoils, rows: Sequence[Sequence[int | None]]
) -> dict[str, float]:
    """The pairwise accuracy of the baselines that do not see the image, of all foils and of each subset.

    An item whose image is missing counts as incorrect, as for the model.
    """
    text_only = ScoredFoils(system.foils, scorer.score(system.foils, rows, "image"), system.is_log_odds)
    values = {
        TEXT_ONLY: text_only.compute_values()[PAIRWISE],
        SHORTER_TEXT: measure_shorter_text(system.foils) * system.has_prediction,
    }
    images, has_prediction = [foil.images[0] for foil in system.foils], system.has_prediction
    metrics: dict[str, float] = {}
    for name, one in values.items():
        metrics |= compute_accuracy_metrics(f"{name}.{PAIRWISE}", one, has_prediction, images)
        for subset, subset_rows in group_by_subset(system.foils).items():
            metrics[f"{name}.subset.{subset}.{PAIRWISE}"] = float(one[subset_rows].mean())
    return metrics


def build_foil_table(foil_set: FoilSet, metrics: dict[str, float]) -> Table:
    """The scores of all foils, of each subset and their mean, compared with the baselines."""
    is_winoground = len(foil_set.foils[0].images) == 2
    names = WINOGROUND_SCORES if is_winoground else (PAIRWISE,)
    extra = () if is_winoground else (AUROC, TEXT_ONLY, SHORTER_TEXT)
    table = Table(title=BENCHMARK_TITLES[foil_set.benchmark], caption="95 %: images resampled")
    table.add_column("subset")
    for heading in ("items", *names, f"{names[0]}, 95 %", *extra):
        table.add_column(heading.replace("_", " "), right=True)
    subsets = group_by_subset(foil_set.foils)
    parts = {"all": (len(foil_set.foils), "")} | {k: (len(v), f"subset.{k}.") for k, v in subsets.items()}
    for label, (count, part) in parts.items():
        key = f"{FOILS_TASK}.{part}{names[0]}"
        others = [f"{part}{AUROC}", *(f"{one}.{part}{PAIRWISE}" for one in (TEXT_ONLY, SHORTER_TEXT))]
        values = [metrics.get(f"{FOILS_TASK}.{one}") for one in others[: len(extra)]]
        table.add_row(
            label,
            f"{count:,}",
            *(f"{metrics[f'{FOILS_TASK}.{part}{name}']:.3f}" for name in names),
            f"{metrics[f'{key}.low']:.3f}-{metrics[f'{key}.high']:.3f}",
            *("" if one is None else f"{one:.3f}" for one in values),
        )
    for label in ("mean", "chance_level"):
        keys = [f"{FOILS_TASK}.{label}.{name}" for name in names]
        if all(key in metrics for key in keys):
            name = "mean of the subsets" if label == "mean" else "chance level"
            table.add_row(name, "", *(f"{metrics[key]:.3f}" for key in keys), "", *("" for _ in extra))
    return table


def build_foil_card(
    foil_set: FoilSet,
    metrics: dict[str, float],
    counts: dict[str, int],
    model: Path,
    data: Path,
    store: RegionStore,
    settings: dict[str, str | int],
) -> ResultsCard:
    """The results card. It has no score of the papers, which evaluate other models."""
    scores: dict[str, ScoreEntry] = {}
    prefix = f"{FOILS_TASK}."
    own = [key.removeprefix(prefix).removesuffix(".low") for key in metrics if key.endswith(".low")]
    for name in own:
        scores |= build_score_entries(name.replace("_", " "), prefix + name, metrics, counts)
    for key, value in metrics.items():
        name = key.removeprefix(prefix)
        if name.startswith(("mean.", "chance_level.", AUROC)) or name.endswith(f".{AUROC}"):
            scores[name.replace("_", " ")] = ScoreEntry(value)
    images = [foil.images[0] for foil in foil_set.foils]
    main = tuple(f"{prefix}{name}" for name in (PAIRWISE, *WINOGROUND_SCORES))
    shown = {key: value for key, value in metrics.items() if key.startswith(main)}
    return ResultsCard(
        task=FOILS_TASK,
        title=f"Foils, {BENCHMARK_TITLES[foil_set.benchmark]}",
        split=data.stem if data.is_file() else data.name,
        scores=scores,
        model=str(model),
        counts={**counts, "images": len(set(images)), **foil_set.excluded},
        files={"foils": data},
        regions=str(store.about["provenance"]),
        settings={
            **settings,
            INTERVAL_NAME: describe_intervals(shown, images, "images"),
            **read_training_settings(model),
        },
    )


def write_foil_scores(path: Path, foils: Sequence[Foil], scores: Sequence[np.ndarray | None]) -> None:
    """Writes the score of each image and text; empty where the image is missing."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["key", "subset", "image", "text", "is_caption", "score"])
    for foil, found in zip(foils, scores, strict=True):
        for image_index, image in enumerate(foil.images):
            for text_index, sentence in enumerate(foil.texts):
                score = "" if found is None else f"{found[image_index, text_index]:.6g}"
                rows.writerow([foil.key, foil.subset, image, sentence, int(image_index == text_index), score])
    write_bytes_atomically(path, text.getvalue().encode())
