"""The shell blocks of README and docs are run line by line, on small files (tests/support/docs_files.py).

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

SHELL = [block for block in BLOCKS if block.language in ("", "bash")]
RUN = {str(block): block for block in SHELL if not block.needs}
FAST = {  # the others take longer than some seconds
    *("README-4", "baselines-1", "baselines-3", "foils-0", "guesswhat-0", "localization-0"),
    *("papers-1", "papers-6", "papers-7", "sharing-0", "vilbert_users-1"),
}
# Blocks whose lines are alternatives to each other: each is run in a folder of its own.
ALTERNATIVES = {"detectors-0", "detectors-3", "vilbert-1", "dual_encoder-0"}
GUESSWHAT_PARTS = ("", ".train", ".valid", ".test")
COCO, REFERENCES, VCR, NLVR2 = "world/coco/vqa/v2_", "world/coco/refcoco+", "world/vcr", "world/nlvr2"
TRAIN, VALIDATION = (f"{COCO}OpenEnded_mscoco_{split}2014_questions.json" for split in ("train", "val"))
TRAIN_ANSWERS, VALIDATION_ANSWERS = (f"{COCO}mscoco_{split}2014_annotations.json" for split in ("train", "val"))
# What stands for the files that the blocks name, on all pages.
GIVEN = {
    **dict.fromkeys(("my_videos", "videos"), "videos"),
    "clips": "clips",
    "video.mp4": "videos/video0.mp4",
    "world/worlds.jsonl": "made/videos/worlds.jsonl",
    **dict.fromkeys(("photos", "images", "new", "tux_stamps"), "photos"),
    **dict.fromkeys(("kitchen.jpg", "street.jpg", "meadow.jpg", "beach.jpg", "image.jpg", "dog.jpg"), "photos/0.png"),
    "photos_by_class": "image_classes",
    "ILSVRC2012": "imagenet",
    "AVE_Dataset": "ave_dataset",
    "bark.wav": "recordings/bark.wav",
    "street.wav": "recordings/street.wav",
    **dict.fromkeys(("ESC-50", "ESC-50-master"), "world/esc50"),
    "TAU-development": "world/tau",
    "TAU-evaluation": "tau_evaluation",
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
    **dict.fromkeys(("dev.json", "test1.json"), f"{NLVR2}/train.json"),
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
    "cc.tsv": "cc.tsv",
    "cc": "stores/photos",
    **dict.fromkeys(("runs/dual", "DUAL_ENCODER_RUN"), "trained/dual"),
    "runs/ave": "trained/ave",
    "VALSE/data": "foils/valse",
    "sugar-crepe/data": "foils/sugar_crepe",
    "winoground/examples.jsonl": "foils/winoground/examples.jsonl",
    "valse": "stores/valse",
    "coco_val2017": "stores/sugar_crepe",
    "regions/winoground": "stores/winoground",
    "dataset_v7w_pointing.json": "candidates/visual7w/dataset_v7w_pointing.json",
    "visual7w": "stores/visual7w",
    **{f"guesswhat{part}.jsonl": f"candidates/guesswhat/guesswhat{part}.jsonl" for part in GUESSWHAT_PARTS},
    "guesswhat": "stores/guesswhat",
    "tasks.yaml": "joint/tasks.yaml",
    "test_images.txt": "joint/test_images.txt",
    "world/coco/images": "world/coco/images",
    "world/coco/boxes.jsonl": "world/coco/boxes.jsonl",
    "pretrained_model.bin": "original/state.bin",
    "bert_base_6layer_6conect.json": "original/config.json",
    "vocab.txt": "original/vocab.txt",
    "resnet101_faster_rcnn_final.caffemodel": "detectors/caffe.caffemodel",
    "detectron_model.pth": "detectors/fpn.pth",
    "fasterrcnn_resnet50_fpn.pth": "detectors/faster_rcnn.pth",
    "detr-resnet-50": "detectors/detr",
    "openl3_audio_mel256_music.h5.gz": "openl3_audio_mel256_music.h5.gz",
    "openl3_audio_mel256_music-v0_4_0.h5.gz": "openl3_audio_mel256_music.h5.gz",
    "openl3_image_mel256_music-v0_4_0.h5.gz": "openl3_image.h5.gz",
}
# And what stands for them in some blocks only.
GIVEN_IN = {
    **{
        name: {"RUN": "vilbert", "run": "vilbert"}
        for name in ("entailment-0", "foils-0", "gqa-0", "nlvr2-0", "retrieval-0", "vqa-0")
    },
    **{f"baselines-{number}": {"RUN": "vilbert"} for number in range(4)},
    "README-4": {"coco": "stores/coco_lite"},  # the same kind of regions as those of the block
    "analysis-0": {"run": "trained/l3net", "runs/vqa": "trained/vqa", "photos": "world/coco/images"},
    "zero_shot_retrieval-0": {"RUN": "trained/captions"},  # which names the captions that it held out
    "vcr-0": {"RUN": "vilbert_caffe"},
    "visual7w-0": {"RUN": "vilbert"},
    "guesswhat-0": {"RUN": "vilbert", "coco": "world/coco/images"},
    "localization-0": {
        "vggss": "vggss",
        "vggss.json": "vggss/vggss.json",
        "flickr": "flickr_soundnet",
        "Annotations": "flickr_soundnet/Annotations",
        "flickr_test.csv": "flickr_soundnet/flickr_test.csv",
    },
    "vggsounder-0": {
        "clips": "vggsounder/clips",
        "vggsounder+background-music.csv": "vggsounder/labels.csv",
        "classes.csv": "vggsounder/classes.csv",
        "vggsound.csv": "vggsounder/vggsound.csv",
    },
    "own_images-1": {"run": "vilbert"},
    "vilbert-2": {"run": "vilbert"},
    "own_videos-1": {"run": "trained/l3net"},
    "refcoco-0": {"RUN": "vilbert"},
    "phrases-0": {"RUN": "vilbert"},
    "visual_genome-0": {"RUN": "vilbert", "vg": "stores/numbered"},
    "detectors-0": {"vg": "detectors/vg", "photos": "two_photos"},
    "papers-6": {
        "data/visual7w/dataset_v7w_pointing.json": "candidates/visual7w/dataset_v7w_pointing.json",
        "coco": "world/coco/images",
    },
    "papers-7": {
        "multi_task_model.bin": "original_tasks/state.bin",
        "bert_base_6layer_6conect.json": "original_tasks/config.json",
        "data/vqa/trainval_label2ans.pkl": "original_tasks/vqa.pkl",
        "data/gqa/trainval_label2ans.pkl": "original_tasks/gqa.pkl",
    },
    "papers-1": {
        "baseline_model.bin": "original_single_stream/state.bin",
        "bert_base_baseline.json": "original_single_stream/config.json",
    },
}
# What must stand next to a file.
COMPANIONS = {"vggsounder+background-music.csv": ("classes.csv",)}
# Options that make a command small, by the words that it begins with. Those of the block take precedence.
SMALL_L3NET = "--variant small --width 2 --image-size 32 --steps 2 --batch-size 4 --validation-pairs 4 --workers 0"
SMALL_TASK = "--epochs 1 --batch-size 8 --workers 0"
SMALL_ANSWERS = f"{SMALL_TASK} --min-answer-count 1"
SMALL = {
    "prepare videos": "--backend sequential",
    "extract": "--backend sequential",
    "synthesize": "--videos 2 --audio 50 --images 2 --scenes 10 --seconds 1 --audio-seconds 1 --side 32 --workers 1",
    "embed audio": "--workers 1",
    "embed image": "--workers 1",
    "embed video": "--workers 1",
    "train l3net": SMALL_L3NET,
    "train clip_classes": SMALL_L3NET,
    "train ave_net": "--width 4 --image-size 32 --steps 2 --batch-size 4 --validation-pairs 4 --workers 0",
    "train --config ave_net_small_data": "--steps 2 --batch-size 4 --workers 0",
    "train --config dual_encoder_small_data": "--steps 2 --batch-size 4 --workers 0",
    "train dual_encoder": "--steps 2 --batch-size 4 --validation-pairs 4 --workers 0",
    "train joint": "--epochs 0.5",
    "train visual7w": SMALL_TASK,
    "train guesswhat": SMALL_TASK,
    "train image_classes": SMALL_TASK,
    "train vilbert": "--variant small --steps 2 --batch-size 4 --validation-pairs 4 --workers 0",
    "train vqa": SMALL_ANSWERS,
    "train gqa": SMALL_ANSWERS,
    "train visual_genome": SMALL_ANSWERS,
    "train grounding": SMALL_TASK,
    "train phrases": SMALL_TASK,
    "train retrieval": SMALL_TASK,
    "train vcr": SMALL_TASK,
    "train nlvr2": SMALL_TASK,
    "train entailment": SMALL_TASK,
    "train sound_classes": SMALL_TASK,
}
# What is replaced in the blocks: sizes that would take hours, or that the small files do not have.
SUBSTITUTED = {
    "--tokens 1600": "--tokens 16 --sample 100",
    "--scenes 3000 --audio-seconds 10": "",
    "--scenes 200 --videos 400 --audio 200 --images 200": "--videos 24",
    **dict.fromkeys((" --width 8", " --steps 300", " --steps 100 --batch-size 32", " --steps 200 --batch-size 32"), ""),
    "--galleries 50 500": "--galleries 2 3",
}
OUTPUTS = {"out", "contact_sheet", "explain"}
WRITERS = {"prepare", "extract", "train", "embed", "convert", "export", "share", "report", "synthesize"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DocsFiles:
    return DocsFiles(tmp_path_factory.mktemp("files"))


def list_commands(block: Block) -> list[list[str]]:
    """The words of each command, with the options that make it small."""
    text = block.text.replace("\\\n", " ")
    for shown, small in SUBSTITUTED.items():
        text = text.replace(shown, small)
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [add_small_options(words[1:]) for words in lines if words[:1] == ["comodal"]]


def add_small_options(words: list[str]) -> list[str]:
    length, added = next(
        ((len(start.split()), added) for start, added in SMALL.items() if words[: len(start.split())] == start.split()),
        (0, ""),
    )
    return [*words[:length], *added.split(), *words[length:]]


def give_files(name: str, words: list[str], files: DocsFiles) -> None:
    """Copy what a command reads and no earlier one has written."""
    parser, rest = parser_of(words)
    names = GIVEN | GIVEN_IN.get(name, {})
    for option, value in parser.parse(rest).values.items():
        for path in (str(Path(str(one))) for one in (value if isinstance(value, list) else [value])):
            for given in (path, *COMPANIONS.get(path, ())):
                if option not in OUTPUTS and given in names and not Path(given).exists():
                    copy(files[names[given]], Path(given))


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def test_every_shell_block_is_run_or_says_why_not():
    """An unmarked block has commands of comodal only, so that each of its lines is run."""
    for name, block in RUN.items():
        lines = [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]
        assert lines and all(line.startswith("comodal ") for line in lines), name
    assert {*FAST, *ALTERNATIVES, *GIVEN_IN} <= set(RUN)
    used = "".join(block.text for block in RUN.values())
    assert all(shown in used for shown in SUBSTITUTED)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in RUN])
def test_the_commands_of_a_block_run(
    name: str, files: DocsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.syspath_prepend(files["musicnn"])
    for number, words in enumerate(list_commands(RUN[name])):
        folder = tmp_path / (str(number) if name in ALTERNATIVES else "0")
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        give_files(name, words, files)
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            capsys.readouterr()
            assert main(words) == 0, shlex.join(words)
        is_writer = words[0] in WRITERS or {"--out", "--explain", "--contact-sheet"} & set(words)
        assert not is_writer or "wrote " in capsys.readouterr().err, shlex.join(words)
