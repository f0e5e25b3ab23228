"""The files that the shell blocks of README and docs read: small media, small data sets in the official formats, small
models with random weights. Each is made when a block first asks for it.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

from comodal.cli.program import main
from comodal.data.regions.region_store import RegionStore
from comodal.data.shards.ingest import prepare_videos
from comodal.inference.embed_files import embed_audio
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.l3net.clip_classifier import ClipClassifier, ClipClassifierConfig
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.regions.convert_detector import convert_detector
from comodal.regions.extract import extract_regions
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.synthesize import MIN_SCENES, synthesize
from tests.support.docs_datasets import (
    write_ave_dataset,
    write_candidates,
    write_flickr_soundnet,
    write_foil_images,
    write_image_classes,
    write_imagenet,
    write_joint_tasks,
    write_tau_evaluation,
    write_vggsounder,
    write_vggss,
)
from tests.support.musicnn_weights import make_musicnn_weights, write_bundle
from tests.support.paths import FIXTURES
from tests.support.small_bert import write_small_bert
from tests.support.small_detectors import write_detr, write_faster_rcnn
from tests.support.small_tasks import config as small_config
from tests.support.small_vilbert_data import SCENES
from tests.support.synthetic_media import tone
from tests.support.twelve_in_one import write_questions

RATE, PHOTOS, VIDEOS, AUDIO_FILES = 48_000, 12, 24, 100
VQA_QUESTIONS = "world/coco/vqa/v2_OpenEnded_mscoco_val2014_questions.json"
VQA_ANNOTATIONS = "world/coco/vqa/v2_mscoco_val2014_annotations.json"
WORDS = ["a dog cat bird on the beach grass", "what is on the table ? left"]
ANSWERS = ["yes", "no", "two"]
SPLITS = {8: "validation", 9: "validation", 10: "test", 11: "test"}  # of the photos
ORIGINAL = FIXTURES / "vilbert"


class DocsFiles:
    """Small files by name, made in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Path:
        """Where a file is. A file within a folder, such as world/coco/images, is made with the folder."""
        path = self.folder / name
        if not path.exists():
            key = next(key for key in (name, *map(str, Path(name).parents)) if key in MAKERS)
            (self.folder / key).parent.mkdir(parents=True, exist_ok=True)
            MAKERS[key](self, self.folder / key)
        assert path.exists(), name
        return path


def write_photos(_: DocsFiles, folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def write_captions(_: DocsFiles, path: Path) -> None:
    kinds = ("dog", "cat", "bird")
    lines = [
        {
            "image": f"{number}.png",
            "caption": f"a {kinds[number % 3]} on a beach",
            "split": SPLITS.get(number, "train"),
        }
        for number in range(PHOTOS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_conceptual_captions(_: DocsFiles, path: Path) -> None:
    """Caption and URL; an image is named by its row."""
    path.write_text("".join(f"a dog on a beach {number}\thttp://a.b/{number}.jpg\n" for number in range(PHOTOS)))


def write_photo_boxes(_: DocsFiles, path: Path) -> None:
    lines = [{"image": f"{number}.png", "boxes": [[0, 0, 20, 20], [5, 5, 60, 40]]} for number in range(PHOTOS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_recordings(_: DocsFiles, folder: Path) -> None:
    folder.mkdir()
    for name, pitch in (("bark", 440.0), ("street", 600.0)):
        soundfile.write(folder / f"{name}.wav", tone(1.2, RATE, pitch=pitch), RATE)


def write_examples(files: DocsFiles, folder: Path) -> None:
    shutil.copytree(files["recordings"], folder)
    shutil.copytree(files["photos"], folder, dirs_exist_ok=True)


def write_features(files: DocsFiles, folder: Path) -> None:
    """VILBERT's LMDB of the photos and of the images of VQA, with as many features as the published weights take."""
    import lmdb

    rng, names = np.random.default_rng(0), [path.stem for path in files["photos"].iterdir()]
    names += [path.stem for path in files["world/coco/images"].rglob("*.jpg")]
    with lmdb.open(str(folder), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for name in names:
            boxes = np.array([[0, 0, 20, 20], [5, 5, 31, 31]], np.float32)
            record = {"image_id": name, "image_w": 32, "image_h": 32, "num_boxes": 2, "boxes": boxes}
            record |= {"features": rng.random((2, 24)).astype(np.float32)}
            transaction.put(name.encode(), pickle.dumps(record))


def write_l3net(_: DocsFiles, folder: Path) -> None:
    torch.manual_seed(0)
    save_model(L3Net(make_small_l3net_config(2, 32)), folder / "model", {})


def write_clip_classifier(_: DocsFiles, folder: Path) -> None:
    save_model(ClipClassifier(ClipClassifierConfig(make_small_l3net_config(2, 32), 2)), folder / "model", {})


def write_vilbert(*heads: Head, regions: str = "stores/photos") -> Callable[[DocsFiles, Path], None]:
    """A run as training leaves it, on regions such as those of the photos and the words of the synthetic data."""

    def write(files: DocsFiles, folder: Path) -> None:
        store = RegionStore(files[regions])
        words = WordPieceTokenizer.from_texts([*WORDS, files["world/coco/vocab.txt"].read_text().replace("\n", " ")])
        config = replace(small_config(words.size), region_feature_dim=store.dim, positions=100)
        torch.manual_seed(0)
        model = TaskModel(TaskModelConfig(config, heads)) if heads else ViLBERT(config)
        save_model(model, folder / "model", {})
        words.save(folder / "model")
        (folder / "model" / "regions.json").write_bytes(store.encode_provenance())
        if heads:
            (folder / "model" / "answers.json").write_text(json.dumps(ANSWERS))

    return write


def write_world(name: str) -> Callable[[DocsFiles, Path], None]:
    """A data set of `comodal synthesize`."""

    def write(files: DocsFiles, folder: Path) -> None:
        made, audio = files.folder / "made" / name, AUDIO_FILES if name in ("esc50", "urbansound8k") else 0
        options = replace(SCENES, scenes=2 * MIN_SCENES, audio=audio)
        synthesize(made, options=options, tasks=[] if name == "esc50" else [name], workers=1)
        shutil.copytree(made / name, folder)
        shutil.copy(made / "vocab.txt", folder)

    return write


def write_synthetic_videos(_: DocsFiles, folder: Path) -> None:
    synthesize(folder, options=SynthesisOptions(VIDEOS, 1.2, 0, 0, 0, side=64, frames_per_second=5.0), workers=1)


def write_videos(files: DocsFiles, folder: Path) -> None:
    """The videos under names of which a hash puts several into validation."""
    folder.mkdir()
    for number, path in enumerate(sorted((files["made/videos"] / "videos").iterdir())):
        shutil.copyfile(path, folder / f"video{number}.mp4")


def write_two_photos(files: DocsFiles, folder: Path) -> None:
    folder.mkdir()
    for number in range(2):
        shutil.copy(files["photos"] / f"{number}.png", folder)


def write_clips(files: DocsFiles, folder: Path) -> None:
    folder.mkdir()
    for number in range(2):
        shutil.copy(files["videos"] / f"video{number}.mp4", folder)


def train(*words: str) -> Callable[[DocsFiles, Path], None]:
    """A run of `comodal train`; words with @ are files."""

    def write(files: DocsFiles, folder: Path) -> None:
        told = [str(files[word[1:]]) if word.startswith("@") else word for word in words]
        assert main(["train", *told, "--workers", "0", "--out", str(folder)]) == 0

    return write


def write_shards(files: DocsFiles, folder: Path) -> None:
    """Shards of the videos with their labels."""
    prepare_videos(files["made/videos/videos.jsonl"], folder, short_side=40, backend="sequential")


def write_audio_classes(_: DocsFiles, folder: Path) -> None:
    for split in ("train", "test"):
        for name, pitch in (("low", 300.0), ("high", 3000.0)):
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                sound = tone(1.0, RATE, silent_seconds=0.1 * number, pitch=pitch)
                soundfile.write(folder / split / name / f"{number}.wav", sound, RATE)


def write_embedding(files: DocsFiles, path: Path) -> None:
    embed_audio(
        [files["recordings/street.wav"]], model=files["openl3_audio_mel256_music.h5.gz"], out=path.parent, workers=1
    )


def write_results(files: DocsFiles, folder: Path) -> None:
    """Of a model that answers questions."""
    words = {"questions": VQA_QUESTIONS, "annotations": VQA_ANNOTATIONS, "regions": "stores/coco", "model": "vqa"}
    assert main(["evaluate", "vqa", *(word for name, file in words.items() for word in (f"--{name}", str(files[file]))),
                 "--out", str(folder / "vqa")]) == 0  # fmt: skip


def write_fpn(_: DocsFiles, path: Path) -> None:
    torch.save(load_file(FIXTURES / "detector" / "x152fpn_small" / "model.safetensors"), path)


def write_store(images: str, boxes: str = "", detector: str = "l3net") -> Callable[[DocsFiles, Path], None]:
    """Regions of a folder of images by a file or a built-in detector: given boxes, or else its own, or a grid."""

    def write(files: DocsFiles, folder: Path) -> None:
        network = str(files[detector]) if detector in MAKERS else detector
        options = {"workers": 1, "backend": "sequential"} | ({"grid": 2} if detector == "l3net" else {})
        extract_regions(files[images], folder, network, files[boxes] if boxes else None, **options)

    return write


def write_numbered(files: DocsFiles, folder: Path) -> None:
    """COCO's images as GQA and Visual Genome name them, and their questions."""
    images = sorted(files["world/coco/images"].rglob("*train*.jpg"))
    numbers = [int(path.stem.rpartition("_")[2]) for path in images]
    for path, number in zip(images, numbers, strict=True):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "images" / f"{number}.jpg")
    write_questions(folder, numbers)


def write_entities(files: DocsFiles, folder: Path) -> None:
    """Flickr30k Entities of three of the images: a phrase each."""
    names = [path.stem for path in sorted(files["world/flickr30k/flickr30k-images"].iterdir())[:3]]
    for part in ("Sentences", "Annotations"):
        (folder / part).mkdir(parents=True)
    for name in names:
        (folder / "Sentences" / f"{name}.txt").write_text("[/EN#1/other A ball] is here .\n")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>16</xmax><ymax>16</ymax></bndbox>"
        text = f"<size><width>32</width><height>32</height></size><object><name>1</name>{box}</object>"
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
    (folder / "train.txt").write_text("\n".join(names[:2]))
    (folder / "test.txt").write_text(names[2])


def write_bert(files: DocsFiles, folder: Path) -> None:
    words = WordPieceTokenizer.from_texts([*WORDS, files["world/coco/vocab.txt"].read_text().replace("\n", " ")])
    write_small_bert(folder, words.vocabulary)


def write_original(fixture: str, config: str) -> Callable[[DocsFiles, Path], None]:
    """Published weights of ViLBERT's layout: state.bin, config.json and vocab.txt."""

    def write(_: DocsFiles, folder: Path) -> None:
        state, told = (
            load_file(ORIGINAL / fixture / "state.safetensors"),
            json.loads((ORIGINAL / fixture / config).read_text()),
        )
        folder.mkdir()
        torch.save(state, folder / "state.bin")
        (folder / "config.json").write_text(json.dumps(told))
        words = WordPieceTokenizer.from_texts(WORDS).vocabulary
        words = [*words, *(f"word{number}" for number in range(told["vocab_size"]))][: told["vocab_size"]]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        for name, size in (("vqa", 120), ("gqa", 60)):
            (folder / f"{name}.pkl").write_bytes(pickle.dumps([f"answer{number}" for number in range(size)]))

    return write


def write_musicnn(_: DocsFiles, folder: Path) -> None:
    """The package's weights; the tower is read from an installed package."""
    write_bundle(folder / "musicnn" / "MSD_vgg", make_musicnn_weights())
    (folder / "musicnn" / "__init__.py").write_text("raise ImportError('it needs TensorFlow')")


def copy_of(source: Path) -> Callable[[DocsFiles, Path], object]:
    copy = shutil.copytree if source.is_dir() else shutil.copy
    return lambda _, path: copy(source, path)


FOILS = ("valse", "sugar_crepe", "winoground")
GRID_STORES = {
    **{f"stores/{name}": f"foil_images/{name}" for name in FOILS},
    "stores/photos": "photos",
    "stores/coco": "world/coco/images",
    "stores/flickr30k": "world/flickr30k/flickr30k-images",
    "stores/nlvr2": "world/nlvr2/images",
    "stores/numbered": "numbered/images",
}
MAKERS: dict[str, Callable[[DocsFiles, Path], object]] = {
    "photos": write_photos,
    "captions.jsonl": write_captions,
    "boxes.jsonl": write_photo_boxes,
    "recordings": write_recordings,
    "examples": write_examples,
    "made/videos": write_synthetic_videos,
    "videos": write_videos,
    "clips": write_clips,
    "two_photos": write_two_photos,
    "trained/l3net": train(
        *("l3net", "--data", "@shards", "--variant", "small", "--width", "2", "--image-size", "32", "--steps", "2"),
        *("--batch-size", "4", "--validation-pairs", "4"),
    ),
    "trained/vqa": train(
        *("vqa", "--model", "@vilbert", "--regions", "@stores/coco", "--questions", "@" + VQA_QUESTIONS),
        *("--annotations", "@" + VQA_ANNOTATIONS, "--min-answer-count", "1", "--epochs", "1", "--batch-size", "8"),
    ),
    "trained/captions": train(
        *("vilbert", "--data", "@stores/photos", "--captions", "@cc.tsv", "--validation-fraction", "0.3"),
        *("--variant", "small", "--steps", "2", "--batch-size", "4", "--validation-pairs", "4"),
        *("--contrastive-weight", "1"),
    ),
    "trained/ave": train(
        *("ave_net", "--data", "@shards", "--variant", "small", "--width", "2", "--image-size", "32", "--steps", "2"),
        *("--batch-size", "4", "--validation-pairs", "4"),
    ),
    "trained/dual": train(
        *("--config", "dual_encoder_small_data", "--data", "@stores/photos", "--captions", "@captions.jsonl"),
        *("--bert", "@bert", "--steps", "2", "--batch-size", "4", "--validation-pairs", "0"),
    ),
    "cc.tsv": write_conceptual_captions,
    "shards": write_shards,
    "detectors/fpn.pth": write_fpn,
    "audio_classes": write_audio_classes,
    "street.npz": write_embedding,
    "results": write_results,
    "features.lmdb": write_features,
    "l3net": write_l3net,
    "classes": write_clip_classifier,
    "vilbert": write_vilbert(),
    "vilbert_caffe": write_vilbert(regions="stores/caffe"),
    "entailment": write_vilbert(Head("entailment", "linear", 3)),
    "score": write_vilbert(Head("score", "linear", 1)),
    "vqa": write_vilbert(Head("vqa", "answers", len(ANSWERS), 8)),
    "pointing": write_vilbert(Head("regions", "regions", 1)),
    **{
        f"world/{name}": write_world(name)
        for name in ("esc50", "coco", "flickr30k", "vcr", "nlvr2", "dcase2013", "tau", "urbansound8k")
    },
    **{name: write_store(images) for name, images in GRID_STORES.items()},
    "stores/vcr": write_store("world/vcr/vcr1images", "world/vcr/boxes.jsonl"),
    "stores/guesswhat": write_store("world/coco/images", "world/coco/boxes.jsonl"),
    "stores/visual7w": write_store("candidates/visual7w/images", "candidates/visual7w/boxes.jsonl"),
    "stores/coco_lite": write_store("world/coco/images", detector="efficientnet_lite0"),
    "stores/caffe": write_store("photos", detector="detectors/caffe.caffemodel"),
    "candidates": write_candidates,
    **{f"foils/{name}": copy_of(FIXTURES / "foils" / name) for name in FOILS},
    **{f"foil_images/{name}": write_foil_images(name) for name in FOILS},
    "joint": write_joint_tasks,
    "image_classes": write_image_classes,
    "imagenet": write_imagenet,
    "tau_evaluation": write_tau_evaluation,
    "ave_dataset": write_ave_dataset,
    "vggsounder": write_vggsounder,
    "vggss": write_vggss,
    "flickr_soundnet": write_flickr_soundnet,
    "numbered": write_numbered,
    "entities": write_entities,
    "bert": write_bert,
    "original": write_original("pretrain_vt0", "config.json"),
    "original_tasks": write_original("vltasks_tasktokens", "config.json"),
    "original_single_stream": write_original("single_stream", "bert_baseline.json"),
    "detectors/caffe.caffemodel": copy_of(FIXTURES / "detector" / "bua_caffe_tiny" / "tiny.caffemodel"),
    "detectors/vg": lambda files, folder: convert_detector(files["detectors/caffe.caffemodel"], folder),
    "detectors/faster_rcnn.pth": lambda _, path: write_faster_rcnn(path),
    "detectors/detr": lambda _, folder: write_detr(folder),
    "musicnn": write_musicnn,
    "openl3_audio_mel256_music.h5.gz": copy_of(FIXTURES / "l3net" / "h5" / "openl3_audio_random_seed1.h5.gz"),
    "openl3_image.h5.gz": copy_of(FIXTURES / "l3net" / "h5" / "openl3_image_random_seed2.h5.gz"),
}
