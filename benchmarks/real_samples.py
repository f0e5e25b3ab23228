"""The real samples of the data sets' own files: read, learnt by heart, and scored by the task that each belongs to.

The folder has a few real pictures and official questions of each kind (VQA v2, GQA, Visual Genome, SNLI-VE, NLVR2,
Flickr30k Entities), laid out as FOLDER/{vqav2,gqa,vgqa,visual_entailment,nlvr2,flickr30k} and FOLDER/images/NAME. A
small ViLBERT without pretraining learns each sample and is scored on the same one: so few tell nothing of what it would
do elsewhere, but that nearly all are right says that questions, pictures and answers find each other. Without the
picture it must do worse wherever a text has two answers.

    python benchmarks/real_samples.py --data FOLDER --out samples/
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from comodal.data.captions.caption_files import read_captions
from comodal.data.regions.region_store import RegionStore
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import make_small_vilbert_config
from comodal.regions.extract import extract_regions
from comodal.tasks.retrieval import caption_retrieval
from comodal.tasks.vision_language import nlvr2, snli_ve
from comodal.tasks.vision_language.question_answering import gqa, visual_genome, vqa
from comodal.training.run import train

BLANKS = ("none", "image")
TAKEN = ("items", "images")  # counts of a card that are not of what was left out


@dataclass(frozen=True)
class Sample:
    """One data set's sample: how it is learnt, how it is scored, and what of its scores counts."""

    recipe: Callable[..., Any]
    training: dict[str, Any]
    evaluate: Callable[..., dict[str, float]]
    score: str
    batch_size: int = 4


def samples_of(data: Path, regions: Path) -> dict[str, Sample]:
    """All samples of the folder; the regions of NAME's pictures lie in `regions`/NAME."""
    questions, annotations = data / "vqav2" / "questions.json", data / "vqav2" / "annotations.json"
    asked = {"questions": data / "gqa" / "questions.json", "regions": regions / "gqa"}
    about = {"questions": data / "vgqa" / "question_answers.json", "regions": regions / "vgqa"}
    said = {"data": data / "visual_entailment" / "sample_pairs.jsonl", "regions": regions / "visual_entailment"}
    pairs = {"data": data / "nlvr2" / "tiny-dev.json", "regions": regions / "nlvr2"}
    told = {"captions": data / "flickr30k" / "sentences", "regions": regions / "flickr30k"}
    seen = regions / "vqav2"
    return {
        "VQA v2": Sample(
            vqa.recipe,
            {"questions": [questions], "annotations": [annotations], "regions": seen, "min_answer_count": 1},
            partial(vqa.evaluate_vqa, questions=questions, annotations=annotations, regions=seen),
            "vqa.accuracy",
        ),
        "GQA": Sample(gqa.recipe, asked, partial(gqa.evaluate_gqa, **asked), "gqa.accuracy"),
        "Visual Genome": Sample(
            visual_genome.recipe,
            about | {"min_answer_count": 1},
            partial(visual_genome.evaluate_visual_genome, **about),
            "visual_genome.accuracy",
        ),
        "SNLI-VE": Sample(
            snli_ve.recipe, said, partial(snli_ve.evaluate_entailment, **said),
            "entailment.accuracy",
        ),
        "NLVR2": Sample(nlvr2.recipe, pairs, partial(nlvr2.evaluate_nlvr2, **pairs), "nlvr2.accuracy"),
        "Flickr30k Entities": Sample(
            caption_retrieval.recipe,
            told | {"captions": unlisted(data / "flickr30k" / "sentences", regions.parent / "sentences")},
            partial(caption_retrieval.evaluate_retrieval, **told, split="all"),
            "retrieval.text_to_image.r1",
        ),
    }  # fmt: skip


def unlisted(sentences: Path, copy: Path) -> Path:
    """The sentences without the lists beside them, by which all are for testing."""
    return Path(shutil.copytree(sentences, copy, dirs_exist_ok=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the samples")
    parser.add_argument("--detector", default="efficientnet_lite0", help="of `comodal extract`: a vision network")
    parser.add_argument("--out", type=Path, required=True, help="where everything goes; run again to go on")
    parser.add_argument("--steps", type=int, default=150, help="of learning each sample")
    options = parser.parse_args()
    samples = samples_of(options.data, options.out / "regions")
    for sample in samples.values():
        store = sample.training["regions"]
        extract_regions(options.data / "images" / store.name, store, options.detector, grid=4, maps="all", workers=1)
    model = begin(options.out / "untrained", texts_of(options.data), next(iter(samples.values())).training["regions"])
    table = Table("sample", "read", "left out", "right", "right without the image")
    numbers: dict[str, float] = {}
    for name, sample in samples.items():
        right = {blank: learn(sample, model, options.out / name, options.steps, blank) for blank in BLANKS}
        counts = json.loads((options.out / name / "results_without_none" / "card.json").read_text())["counts"]
        left_out = "; ".join(f"{count} x {reason}" for reason, count in counts.items() if reason not in TAKEN and count)
        numbers |= {
            f"{name}.items": counts["items"],
            f"{name}.right": right["none"],
            f"{name}.blind": right["image"],
        }
        table.add_row(name, str(counts["items"]), left_out, *(f"{right[blank]:.3f}" for blank in BLANKS))
    Console().print(table)
    (options.out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")


def texts_of(data: Path) -> list[str]:
    """Every word of the samples: their files as they are, and the captions without marks."""
    files = [path for path in data.rglob("*.json*") if path.suffix in (".json", ".jsonl")]
    return [
        *(path.read_text() for path in files),
        *(one.caption for one in read_captions(data / "flickr30k" / "sentences")),
    ]


def begin(folder: Path, texts: Sequence[str], regions: Path) -> Path:
    """A small ViLBERT of chance that knows the words of the samples."""
    words = WordPieceTokenizer.from_texts(texts)
    config = make_small_vilbert_config(words.size, RegionStore(regions).dim, 1)
    text, vision = (replace(stream, dropout=0.0, attention_dropout=0.0) for stream in (config.text, config.vision))
    torch.manual_seed(0)
    save_model(ViLBERT(replace(config, text=text, vision=vision)), folder, {"recipe": "none"})
    words.save(folder)
    return folder


def learn(sample: Sample, model: Path, out: Path, steps: int, blank: str) -> float:
    """The score of a model that has learnt the sample by heart."""
    one_epoch = sample.recipe(model=model, **sample.training, epochs=1.0, batch_size=1, workers=0).steps
    settings = sample.training | {
        "model": model, "ablate": blank, "epochs": steps * sample.batch_size / one_epoch,
        "batch_size": sample.batch_size, "learning_rate": 3e-4, "workers": 0,
    }  # fmt: skip
    run = out / f"without_{blank}"
    train(sample.recipe, settings, run, resume=True, threads=torch.get_num_threads())
    return sample.evaluate(run, out=out / f"results_without_{blank}", ablate=blank)[sample.score]


if __name__ == "__main__":
    main()
