"""Small data for each recipe of ViLBERT, in the official formats, and the flags for two steps on it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from comodal.data.captions.caption_files import read_captions
from comodal.data.regions.region_store import RegionWriter
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.synthesize import MIN_SCENES, synthesize
from tests.support.small_bert import write_small_bert
from tests.support.small_captions import write_captions
from tests.support.small_tasks import DIM, config

SCENES = SynthesisOptions(videos=0, images=0, seconds=1.0, audio=0, scenes=MIN_SCENES, side=32, audio_seconds=1.0)


def write_task_set(folder: Path, name: str) -> list[str]:
    """One task set, a store of random regions of its images, and a ViLBERT of chance; the flags that name them."""
    synthesize(folder / "world", options=SCENES, tasks=[name], workers=1)
    rng = np.random.default_rng(0)
    with RegionWriter(folder / "regions", DIM, about={}) as writer:
        for line in (folder / "world" / name / "boxes.jsonl").read_text().splitlines():
            record = json.loads(line)
            boxes = np.array(record["boxes"], np.float32)
            features = rng.random((len(boxes), DIM), dtype=np.float32)
            writer.add(record["image"].rpartition(".")[0], features, boxes, record["width"], record["height"])
    words = WordPieceTokenizer.read(folder / "world" / "vocab.txt")
    torch.manual_seed(7)
    save_model(ViLBERT(replace(config(words.size), positions=100)), folder / "model", {})
    words.save(folder / "model")
    return ["--model", str(folder / "model"), "--regions", str(folder / "regions")]


def two_steps(examples: int) -> list[str]:
    """The flags for two steps of half of the examples."""
    return ["--batch-size", str(examples // 2), "--epochs", "1"]


def small_vilbert(folder: Path) -> list[str]:
    regions, captions = write_captions(folder, 24)
    words = ["--data", str(regions), "--captions", str(captions), "--variant", "small", "--steps", "2"]
    return [*words, "--batch-size", "8", "--validation-pairs", "0", "--data-fraction", "1"]


def small_dual_encoder(folder: Path) -> list[str]:
    regions, captions = write_captions(folder, 24)
    texts = [caption.caption for caption in read_captions(captions).captions]
    bert = write_small_bert(folder / "bert", WordPieceTokenizer.from_texts(texts).vocabulary)
    words = ["--data", str(regions), "--captions", str(captions), "--bert", str(bert), "--steps", "2"]
    return [*words, "--batch-size", "8", "--validation-pairs", "0"]


def small_vqa(folder: Path) -> list[str]:
    words, files = write_task_set(folder, "coco"), folder / "world" / "coco" / "vqa"
    questions = files / "v2_OpenEnded_mscoco_train2014_questions.json"
    annotations = files / "v2_mscoco_train2014_annotations.json"
    words += ["--questions", str(questions), "--annotations", str(annotations), "--min-answer-count", "1"]
    return [*words, *two_steps(len(json.loads(questions.read_text())["questions"]))]


def small_grounding(folder: Path) -> list[str]:
    words, files = write_task_set(folder, "coco"), folder / "world" / "coco" / "refcoco+"
    words += ["--references", str(files / "refs(unc).p"), "--instances", str(files / "instances.json")]
    return [*words, *two_steps(66)]


def small_vcr(folder: Path) -> list[str]:
    words, data = write_task_set(folder, "vcr"), folder / "world" / "vcr" / "train.jsonl"
    return [*words, "--data", str(data), *two_steps(2 * len(data.read_text().splitlines()))]


def small_retrieval(folder: Path) -> list[str]:
    words = write_task_set(folder, "flickr30k")
    captions = folder / "world" / "flickr30k" / "all_data_final_train_2014.jsonline"
    count = sum(len(json.loads(line)["sentences"]) for line in captions.read_text().splitlines())
    return [*words, "--captions", str(captions), "--validation-fraction", "0", *two_steps(count)]


SMALL_VILBERT_DATA: dict[str, Callable[[Path], list[str]]] = {
    "vilbert": small_vilbert,
    "dual_encoder": small_dual_encoder,
    "vqa": small_vqa,
    "grounding": small_grounding,
    "vcr": small_vcr,
    "retrieval": small_retrieval,
}
