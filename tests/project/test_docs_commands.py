"""The shell blocks of README and docs are run, in the order of their lines, on small files (tests/support/docs_files.py).

Blocks that need more than a few seconds are marked slow. A block that cannot run here has a comment above it, which
says what it needs: `<!-- not run: needs the network -->`.
"""

import shlex
import shutil
import warnings
from pathlib import Path

import pytest

from comodal.cli.program import main
from tests.project.test_docs import BLOCKS, Block, parser_of
from tests.support.docs_files import DocsFiles

COMMANDS = {
    f"{block.page}-{block.number}": block
    for block in BLOCKS
    if "comodal " in block.text and block.language in ("", "bash")
}
RUN = {name: block for name, block in COMMANDS.items() if not block.needs}
FAST: set[str] = set()
# Blocks whose lines are alternatives to each other: each is run in a folder of its own.
ALTERNATIVES = {"detectors-0", "detectors-2", "vilbert-1", "tasks-0", "retrieval-0", "dual_encoder-0"}
COCO, REFERENCES, VCR, NLVR2 = "world/coco/vqa/v2_", "world/coco/refcoco+", "world/vcr", "world/nlvr2"
TRAIN, VALIDATION = (f"{COCO}OpenEnded_mscoco_{split}2014_questions.json" for split in ("train", "val"))
TRAIN_ANSWERS, VALIDATION_ANSWERS = (f"{COCO}mscoco_{split}2014_annotations.json" for split in ("train", "val"))
# What stands for the files that the blocks name, on all pages.
GIVEN = {
    **dict.fromkeys(("my_videos", "videos", "clips"), "made/videos/videos"),
    "video.mp4": "made/videos/videos/video-00000.mp4",
    "world/worlds.jsonl": "made/videos/worlds.jsonl",
    **dict.fromkeys(("photos", "images", "new", "tux_stamps"), "photos"),
    **dict.fromkeys(("kitchen.jpg", "street.jpg", "meadow.jpg", "beach.jpg", "image.jpg"), "photos/0.png"),
    "bark.wav": "recordings/bark.wav",
    "street.wav": "recordings/street.wav",
    **dict.fromkeys(("ESC-50", "ESC-50-master"), "world/esc50"),
    "TAU-urban-acoustic-scenes": "world/tau",
    "dcase2013": "world/dcase2013",
    "UrbanSound8K": "world/urbansound8k",
    **dict.fromkeys(("features.lmdb", "datasets/flickr30k.lmdb"), "features.lmdb"),
    **dict.fromkeys(("captions.jsonl", "captions.json"), "captions.jsonl"),
    **dict.fromkeys(("bert-base-uncased", "minilm"), "bert"),
    **dict.fromkeys(("RUN", "run", "runs/l3net"), "l3net"),
    **dict.fromkeys(("runs/vilbert", "vilbert"), "vilbert"),
    "regions": "stores/photos",
    "shards": "shards",
    "boxes.jsonl": "boxes.jsonl",
    "recordings": "recordings",
    "examples": "examples",
    "my_audio": "audio_classes",
    "street.npz": "street.npz",
    "results/vqa": "results/vqa",
    "results": "results",
    "runs/classes": "classes",
    "runs/vqa": "vqa",
    "runs/entailment": "entailment",
    "runs/vcr": "score",
    **dict.fromkeys(("runs/grounding", "runs/refcoco", "runs/phrases"), "pointing"),
    **dict.fromkeys(("q.json", "train_q.json"), TRAIN),
    **dict.fromkeys(("a.json", "train_a.json"), TRAIN_ANSWERS),
    **dict.fromkeys(("q_val.json", "val_q.json"), VALIDATION),
    **dict.fromkeys(("a_val.json", "val_a.json"), VALIDATION_ANSWERS),
    "test2015_questions.json": f"{COCO}OpenEnded_mscoco_test2015_questions.json",
    **dict.fromkeys(("coco", "coco_train"), "stores/coco"),
    **{name: f"{REFERENCES}/{name}" for name in ("refs(unc).p", "instances.json")},
    **{name: f"{VCR}/{name}" for name in ("train.jsonl", "val.jsonl", "test.jsonl", "vcr1images")},
    "vcr": "stores/vcr",
    "train.json": f"{NLVR2}/train.json",
    "dev.json": f"{NLVR2}/test1.json",
    "nlvr2": "stores/nlvr2",
    **{f"snli_ve_{split}.jsonl": f"world/flickr30k/snli_ve_{split}.jsonl" for split in ("train", "dev", "test")},
    "dataset_flickr30k.json": "world/flickr30k/dataset_flickr30k.json",
    "flickr30k": "stores/flickr30k",
    **dict.fromkeys(("S", "Sentences"), "entities/Sentences"),
    **dict.fromkeys(("A", "Annotations"), "entities/Annotations"),
    **{name: f"entities/{name}" for name in ("train.txt", "test.txt")},
    "train_balanced_questions.json": "numbered/gqa/train_balanced_questions.json",
    "testdev_balanced_questions.json": "numbered/gqa/val_balanced_questions.json",
    **dict.fromkeys(("question_answers.json", "held_out.json"), "numbered/visual_genome/question_answers.json"),
    "gqa": "stores/numbered",
    "pretrained_model.bin": "original/state.bin",
    "bert_base_6layer_6conect.json": "original/config.json",
    "vocab.txt": "original/vocab.txt",
    "resnet101_faster_rcnn_final.caffemodel": "detectors/caffe.caffemodel",
    "pytorch_model.bin": "detectors/lxmert.bin",
    "detectron_model.pth": "detectors/fpn.pth",
    "fasterrcnn_resnet50_fpn.pth": "detectors/faster_rcnn.pth",
    "detr-resnet-50": "detectors/detr",
    "openl3_audio_mel256_music.h5.gz": "openl3_audio.h5.gz",
    "openl3_audio_mel256_music-v0_4_0.h5.gz": "openl3_audio.h5.gz",
    "openl3_image_mel256_music-v0_4_0.h5.gz": "openl3_image.h5.gz",
}
# And what stands for them in some blocks only.
GIVEN_IN = {
    **dict.fromkeys(("README-7", *(f"{page}-0" for page in (
        "entailment", "gqa", "grounding", "nlvr2", "phrases", "retrieval", "vcr", "visual_genome", "vqa", "tasks",
    ))), {"RUN": "vilbert", "run": "vilbert"}),
    **{f"baselines-{number}": {"RUN": "vilbert"} for number in range(4)},
    "grounding-0": {"r": "stores/coco"},
    "phrases-0": {"r": "stores/flickr30k"},
    "visual_genome-0": {"vg": "stores/numbered"},
    "detectors-0": {"vg": "detectors/vg"},
    "papers-1": {
        "baseline_model.bin": "original_single_stream/state.bin",
        "bert_base_baseline.json": "original_single_stream/config.json",
    },
}  # fmt: skip
OUTPUTS = {"out", "contact_sheet", "explain"}
# Options that make a command small, by the beginning of the command. Those of the block come after them.
SMALL_TASK = "--epochs 1 --batch-size 8 --workers 0"
SMALL = {
    "prepare videos": "--backend sequential",
    "extract": "--backend sequential",
    "embed": "--workers 1",
    "train l3net": "--variant small --width 2 --image-size 32 --steps 2 --batch-size 4 --validation-pairs 4 --workers 0",
    "train vilbert": "--variant small --steps 2 --batch-size 4 --validation-pairs 4 --workers 0",
    **{
        f"train {name}": SMALL_TASK
        for name in ("grounding", "phrases", "retrieval", "vcr", "nlvr2", "entailment", "sound_classes")
    },
    **{f"train {name}": f"{SMALL_TASK} --min-answer-count 1" for name in ("vqa", "gqa", "visual_genome")},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DocsFiles:
    return DocsFiles(tmp_path_factory.mktemp("files"))


def list_commands(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words[1:] for words in (shlex.split(line, comments=True) for line in lines) if words[:1] == ["comodal"]]


def add_small_options(words: list[str]) -> list[str]:
    (added,) = [text for start, text in SMALL.items() if words[: len(start.split())] == start.split()] or [""]
    size = 1 + (words[0] in ("train", "prepare", "embed"))
    return [*words[:size], *added.split(), *words[size:]]


def give_files(name: str, words: list[str], files: DocsFiles) -> None:
    """Copy what a command reads and no earlier one has written."""
    parser, rest = parser_of(words)
    names = GIVEN | GIVEN_IN.get(name, {})
    for option, value in parser.parse(rest).values.items():
        for path in map(str, value if isinstance(value, list) else [value]):
            if option not in OUTPUTS and path in names and not Path(path).exists():
                copy(files[names[path]], Path(path))


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in RUN])
def test_the_commands_of_a_block_run(name: str, files: DocsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(files["musicnn"])
    for number, words in enumerate(list_commands(RUN[name])):
        folder = tmp_path / (str(number) if name in ALTERNATIVES else "0")
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        small = add_small_options(words)
        give_files(name, small, files)
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            assert main(small) == 0, shlex.join(small)
