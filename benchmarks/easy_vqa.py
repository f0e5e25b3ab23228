"""Questions about simple pictures: easy-vqa (5,000 pictures of a coloured shape, 48,000 questions, its own split).

The package's questions are written as VQA v2's files, regions are a grid over EfficientNet-Lite0's map, the network is
small and begins from chance: there is nothing here that pretraining would help. Beside it stands the same network that
never sees a picture. (A question alone is right in about two of three.) What is asked is learnt one after the other:
first what the answer must be about, then the shape, and late, at once, whether a colour is the one that is asked for;
at three times this rate, in batches of 64, that last step is never taken.

    pip install easy-vqa
    python benchmarks/easy_vqa.py --out easy/
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from comodal.data.regions.region_store import RegionStore
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import make_small_vilbert_config
from comodal.regions.extract import extract_regions
from comodal.tasks.vision_language.question_answering.vqa import evaluate_vqa, recipe
from comodal.training.run import train

ANNOTATORS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where everything goes; run again to go on")
    parser.add_argument("--data", type=Path, help="the package's folder data/; by default that of the package")
    parser.add_argument("--detector", default="efficientnet_lite0", help="of `comodal extract`: a vision network")
    parser.add_argument("--grid", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=8.0)
    options = parser.parse_args()
    data = options.data or package_data()
    files = {split: write_official(data / split / "questions.json", options.out, split) for split in ("train", "test")}
    for split in files:
        extract_regions(data / split / "images", options.out / f"{split}_regions", options.detector, grid=options.grid)
    model = begin(options.out, files["train"][0])
    numbers: dict[str, float] = {}
    for blank in ("none", "image"):
        started, run = time.perf_counter(), options.out / f"without_{blank}"
        settings = {"model": model, "questions": [files["train"][0]], "annotations": [files["train"][1]],
                    "regions": options.out / "train_regions", "start_from": "scratch", "ablate": blank,
                    "epochs": options.epochs, "batch_size": 32, "learning_rate": 3e-4, "workers": 0}  # fmt: skip
        train(recipe, settings, run, resume=True, threads=torch.get_num_threads())
        found = evaluate_vqa(
            run, files["test"][0], options.out / "test_regions", files["test"][1], ablate=blank, out=run / "results"
        )
        numbers |= {f"without_{blank}.{name}": value for name, value in found.items()}
        numbers[f"without_{blank}.seconds"] = time.perf_counter() - started
    (options.out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    for name in ("accuracy", "majority", "seconds"):
        print(name, *(f"{numbers.get(f'without_{b}.vqa.{name}', numbers.get(f'without_{b}.{name}')):.4f}"
                      for b in ("none", "image")))  # fmt: skip


def package_data() -> Path:
    import easy_vqa

    return Path(easy_vqa.__file__).parent / "data"


def write_official(source: Path, out: Path, split: str) -> tuple[Path, Path]:
    """The package's [question, answer, picture] as VQA v2's questions and annotations."""
    asked, annotated = [], []
    for number, (question, answer, image) in enumerate(json.loads(source.read_text())):
        asked.append({"question_id": number, "image_id": image, "question": question})
        people = [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(ANNOTATORS)]
        kind = "yes/no" if answer in ("yes", "no") else "other"
        annotated.append({"question_id": number, "image_id": image, "question_type": question.split()[0],
                          "answer_type": kind, "multiple_choice_answer": answer, "answers": people})  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    questions, annotations = out / f"{split}_questions.json", out / f"{split}_annotations.json"
    questions.write_text(json.dumps({"questions": asked}))
    annotations.write_text(json.dumps({"annotations": annotated}))
    return questions, annotations


def begin(out: Path, questions: Path) -> Path:
    """A small ViLBERT of chance with the words of the questions, for the task to begin with."""
    words = WordPieceTokenizer.from_texts(entry["question"] for entry in json.loads(questions.read_text())["questions"])
    config = make_small_vilbert_config(words.size, RegionStore(out / "train_regions").dim, 1)
    text, vision = (replace(stream, dropout=0.0, attention_dropout=0.0) for stream in (config.text, config.vision))
    config = replace(config, text=text, vision=vision)
    folder = out / "untrained"
    save_model(ViLBERT(config), folder, {"recipe": "none"})
    words.save(folder)
    return folder


if __name__ == "__main__":
    main()
