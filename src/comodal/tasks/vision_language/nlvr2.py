"""NLVR2: is a sentence true of two pictures? (Suhr et al., ACL 2019; 12-in-1, Lu et al., CVPR 2020.)

The sentence meets each picture in a pass of its own, and both pooled results go through one head of two layers. The
files are JSON Lines, whatever their names say; an `identifier` ends with the number of its sentence, and the pictures
are called like it: dev-850-0-1 is about dev-850-0-img0.png and dev-850-0-img1.png.
"""

from collections import Counter
from pathlib import Path

from comodal.data.loader import Workers
from comodal.errors import DataError
from comodal.hardware import DeviceName, Precision, resolve_compute
from comodal.models.vilbert.heads import Head
from comodal.tasks.vision_language.sentence_classification import (
    ImageSentence,
    SentenceTask,
    build_sentence_run,
    evaluate_statements,
    read_text_fields,
)
from comodal.tasks.vision_language.text_image_examples import Ablation
from comodal.tasks.vision_language.vilbert_fine_tuning import FineTuneConfig, ViLBERTStart
from comodal.text_files import read_json_lines
from comodal.training.run import Run

NLVR2_CLASSES = ("False", "True")
NLVR2_MAX_TOKENS = 40


def read_nlvr2_sentences(path: Path) -> tuple[list[ImageSentence], Counter[str]]:
    """The sentences of train.json, dev.json or test1.json.

    Raises:
        DataError: The file cannot be read, or a line is not NLVR2's.
    """
    statements = []
    for number, entry in read_json_lines(path):
        identifier, sentence = read_text_fields(path, number, entry, "identifier", "sentence")
        pair, dash, last = identifier.rpartition("-")
        if not dash or not last.isdigit() or pair.count("-") != 2:
            raise DataError(f"{path}, line {number}: identifier {identifier!r} is not like train-10171-0-0")
        label = entry.get("label")
        images = (f"{pair}-img0", f"{pair}-img1")
        group = pair.rpartition("-")[0]  # the set whose pictures and sentences are written for each other
        statements.append(ImageSentence(identifier, sentence, images, None if label is None else str(label), group))
    return statements, Counter()


NLVR2_TASK = SentenceTask(
    name="nlvr2",
    title="NLVR2",
    classes=NLVR2_CLASSES,
    head=Head("pairs", "pairs", 2),
    read=read_nlvr2_sentences,
    papers={("test1", 6967): 0.789},  # 12-in-1, one model for all tasks
    groups="sets of pictures",
    refuses_missing=True,
)


def recipe(
    model: Path,
    data: Path,
    regions: Path,
    validation: Path | None = None,
    start: ViLBERTStart = "pretrained",
    blank: Ablation = "nothing",
    epochs: float = 20.0,
    batch_size: int = 64,
    learning_rate: float = 2e-5,
    max_words: int = NLVR2_MAX_TOKENS,
    max_regions: int = 36,
    workers: Workers = "auto",
    seed: int = 0,
) -> Run:
    """Fine-tunes a ViLBERT to say whether a sentence is true of two pictures.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        data: The official train.json.
        regions: The region store of the pictures.
        validation: The official dev.json.
        start: From the pretrained weights, or the same network from chance: the control.
        blank: Leave out the text or the picture: the control that shows what the other says alone.
        epochs: How often every sentence is seen.
        batch_size: Sentences in a step, over all processes.
        learning_rate: Of what was pretrained; the new head learns at 1e-4.
        max_words: Word pieces of a sentence.
        max_regions: Regions of a picture.
        workers: Processes that read data; auto: two for a CPU, more for a GPU.
        seed: Of the head and the order.

    Examples:
        comodal train nlvr2 --model RUN --data train.json --validation dev.json --regions nlvr2/ --out runs/nlvr2
    """
    setup = FineTuneConfig(model, regions, start, blank, epochs, batch_size, learning_rate, max_regions, workers, seed)
    return build_sentence_run(NLVR2_TASK, setup, data, validation, max_words)


def evaluate_nlvr2(
    model: Path,
    data: Path,
    regions: Path,
    blank: Ablation = "nothing",
    max_words: int = NLVR2_MAX_TOKENS,
    max_regions: int = 36,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    out: Path | None = None,
) -> dict[str, float]:
    """Says of each sentence whether it is true of its two pictures, and counts how often that is right.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train nlvr2`.
        data: The official dev.json or test1.json; without labels there is no score.
        regions: The region store of the pictures.
        blank: Leave out the text or the picture.
        max_words: Word pieces of a sentence.
        max_regions: Regions of a picture.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.
        out: Folder for results.json, predictions.csv and the results card; nothing is written without it.

    Returns:
        nlvr2.accuracy with its interval, nlvr2.chance (the larger class) and the recall of each class.

    Raises:
        DataError: A file is missing or damaged, or a picture is not in the store (the official script refuses that).
        CheckpointError: There is no such model.

    Examples:
        comodal evaluate nlvr2 --model runs/nlvr2 --data dev.json --regions nlvr2/ --out results/nlvr2
    """
    return evaluate_statements(
        NLVR2_TASK, model, data, regions, blank, max_words, max_regions, resolve_compute(device, precision), out
    )
