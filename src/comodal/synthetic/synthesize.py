"""Generates a synthetic data folder: videos with ground truth, ESC-50 style audio, and images by class.

videos/*.mp4, videos.jsonl      a source for `comodal prepare videos`
worlds.jsonl                    the ground truth of each video: objects, boxes, events, captions
esc50/meta/esc50.csv, audio/    audio of worlds that are in no video, in the layout of ESC-50
images/{train,test}/KIND/       images of worlds that are in no video
scenes/                         images with captions and boxes (see synthetic/scenes/caption_scenes.py)
vocab.txt                       every word of the texts, as a BERT vocabulary

With `tasks`, also task data sets in official formats (see synthetic/formats/task_sets.py and docs/guides/synthetic.md).
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from comodal.data.output_folder import lock_output_folder, translate_os_errors
from comodal.errors import MAX_WORKERS, DataError, check_number
from comodal.files import write_bytes_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.progress import Progress
from comodal.synthetic.formats.task_sets import TASK_SETS, finish_task_set, list_unfinished_sets, select_task_sets
from comodal.synthetic.scenes.audio_synthesis import render_world_audio
from comodal.synthetic.scenes.caption_scenes import write_scene_image, write_scene_lists
from comodal.synthetic.scenes.ground_truth import build_ground_truth
from comodal.synthetic.scenes.media_writers import format_json_lines, write_image_file, write_video_file, write_wav_file
from comodal.synthetic.scenes.rendering import Painter, render_frame
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.scenes.world import SOUNDING_KINDS, Purpose, RandomStream, make_world
from comodal.synthetic.vocabulary import write_vocabulary
from comodal.text_files import read_json_object
from comodal.workers import select_backend

VIDEO_SAMPLE_RATE = 48_000
AUDIO_SAMPLE_RATE = 44_100  # of ESC-50
ESC50_FOLDS = 5
MIN_SCENES = 10  # of task sets: eight for training, one for validation, one for testing
ESC10_KINDS = SOUNDING_KINDS[::2]


DEFAULT_SYNTHESIS = SynthesisOptions()


@flatten_parameters
def synthesize(
    out: Path,
    *,
    options: SynthesisOptions = DEFAULT_SYNTHESIS,
    tasks: Sequence[str] = (),
    workers: int = 2,
) -> None:
    """Generate short synthetic videos in which visible objects cause the audio, with the ground truth.

    An interrupted run resumes when started again. A finished folder is left unchanged, except that missing task data
    sets are added.

    Args:
        out: where to write; created if it does not exist.
        tasks: task sets to write in official formats: coco (VQA v2, RefCOCO+, Karpathy's captions), flickr30k
            (retrieval, SNLI-VE), vcr, nlvr2, dcase2013, tau, urbansound8k; or all.
        options: the size and the kind of the data.
        workers: processes; the result does not depend on their number.

    Raises:
        DataError: the folder holds synthetic data that was made with other options, another command writes there, or
            the disk is full.

    Examples:
        comodal synthesize world/
        comodal synthesize big/ --videos 5000 --seconds 10 --seed 1
        comodal synthesize world/ --tasks coco vcr
    """
    options.check()
    check_number("workers", workers, 1, MAX_WORKERS)
    sets = select_task_sets(tasks)
    if sets and options.scenes < MIN_SCENES:
        raise ValueError(
            f"task sets need {MIN_SCENES} scenes or more, so that each split has some; got {options.scenes}"
        )
    with translate_os_errors(out), lock_output_folder(out):
        _check_options_file(out, options)
        _make_missing_media(out, options, sets, workers)


def _make_missing_media(folder: Path, options: SynthesisOptions, sets: Sequence[str], workers: int) -> None:
    """Make the missing files."""
    if not (folder / "videos.jsonl").exists():
        _remove_partial_media(folder)
        _run_jobs(_list_media_jobs(folder, options), workers, "synthetic data")
        write_scene_lists(folder / "scenes", options.seed, options.scenes, options.side)
        write_vocabulary(folder / "vocab.txt")
        _write_media_lists(folder, options)
    for name in list_unfinished_sets(folder, sets):
        _remove_partial_media(folder / name)
        _run_jobs(TASK_SETS[name].jobs(folder / name, options), workers, name)
        finish_task_set(folder, options, name)


def _list_media_jobs(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    return [
        *(partial(_make_video, folder, options, index) for index in range(options.videos)),
        *(partial(_make_audio, folder, options, index) for index in range(_count_audio_clips(options))),
        *(partial(_make_image, folder, options, index) for index in range(2 * options.images)),
        *(
            partial(write_scene_image, folder / "scenes", options.seed, index, options.side)
            for index in range(options.scenes)
        ),
    ]


def _remove_partial_media(folder: Path) -> None:
    """Remove incomplete files of an interrupted run."""
    for partial_file in folder.rglob(".*.part"):
        partial_file.unlink()


def _check_options_file(folder: Path, options: SynthesisOptions) -> None:
    """Write the options, or compare them with those of the existing folder."""
    about = folder / "about.json"
    expected = {"kind": "synthetic data", **asdict(options)}
    if about.exists():
        existing = read_json_object(about)
        different = sorted(name for name in expected if existing.get(name) != expected[name])
        if different:
            differences = ", ".join(f"{name} {existing.get(name)} (requested {expected[name]})" for name in different)
            raise DataError(
                f"{folder} holds data that was made with other options ({differences}); choose another folder or "
                f"delete this one"
            )
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise DataError(f"{folder} is not empty and has no synthetic data; choose another folder")
    else:
        write_bytes_atomically(about, (json.dumps(expected, indent=2) + "\n").encode())


def _run_jobs(jobs: Sequence[Callable[[], None]], workers: int, name: str) -> None:
    """Run all jobs in a number of processes, with a progress bar."""
    with (
        select_backend("loky"),
        Progress(name, len(jobs)) as progress,
        Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=8) as parallel,
    ):
        for _ in parallel(delayed(job)() for job in jobs):
            progress.advance()


def _make_video(folder: Path, options: SynthesisOptions, index: int) -> None:
    path = folder / "videos" / f"{make_video_key(index)}.mp4"
    if path.exists():
        return
    world = make_world(options.seed, Purpose.VIDEO, index, seconds=options.seconds)
    painter = Painter(world, options.side)
    frame_rate = options.frames_per_second
    frames = (
        painter.paint_frame(frame_index / frame_rate) for frame_index in range(round(options.seconds * frame_rate))
    )
    waveform = render_world_audio(world, VIDEO_SAMPLE_RATE)
    write_video_file(path, frames, frame_rate, waveform, VIDEO_SAMPLE_RATE, options.side)


def _make_audio(folder: Path, options: SynthesisOptions, index: int) -> None:
    path = folder / "esc50" / "audio" / make_clip_name(index)
    if not path.exists():
        kind = SOUNDING_KINDS[index % len(SOUNDING_KINDS)]
        world = make_world(options.seed, Purpose.AUDIO, index, seconds=options.audio_seconds, kind=kind)
        write_wav_file(path, render_world_audio(world, AUDIO_SAMPLE_RATE), AUDIO_SAMPLE_RATE)


def _make_image(folder: Path, options: SynthesisOptions, index: int) -> None:
    kind, split = SOUNDING_KINDS[index % len(SOUNDING_KINDS)], "train" if index < options.images else "test"
    path = folder / "images" / split / kind / f"{index:05d}.jpg"
    if not path.exists():
        world = make_world(options.seed, Purpose.IMAGE, index, seconds=options.seconds, kind=kind)
        moment = float(world.make_generator(RandomStream.MOMENT).uniform(0, options.seconds))
        write_image_file(path, render_frame(world, moment, options.side))


def _count_audio_clips(options: SynthesisOptions) -> int:
    return options.audio // (ESC50_FOLDS * len(SOUNDING_KINDS)) * ESC50_FOLDS * len(SOUNDING_KINDS)


def make_video_key(index: int) -> str:
    """The name of a video."""
    return f"video-{index:05d}"


def assign_video_split(index: int) -> str:
    """Eight of ten videos for training, then one for validation and one for testing."""
    return {8: "validation", 9: "test"}.get(index % 10, "train")


def make_clip_name(index: int) -> str:
    """File name of a clip as in ESC-50: fold, source, take, target; each set of all kinds goes to the next fold."""
    return f"{index // len(SOUNDING_KINDS) % ESC50_FOLDS + 1}-{100000 + index}-A-{index % len(SOUNDING_KINDS)}.wav"


def _write_media_lists(folder: Path, options: SynthesisOptions) -> None:
    """The lists of all files; videos.jsonl is last and marks the folder as complete."""
    worlds, sources = [], []
    for index in range(options.videos):
        world = make_world(options.seed, Purpose.VIDEO, index, seconds=options.seconds)
        key = make_video_key(index)
        record: dict[str, Any] = {
            "key": key,
            "split": assign_video_split(index),
            **build_ground_truth(world, options.side),
        }
        worlds.append(record)
        path = f"videos/{key}.mp4"
        sources.append({"path": path, "key": key, "label": record["label"], "group": key, "split": record["split"]})
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("filename", "fold", "target", "category", "esc10", "src_file", "take"))
    for index in range(_count_audio_clips(options)):
        name, kind = make_clip_name(index), SOUNDING_KINDS[index % len(SOUNDING_KINDS)]
        fold, source, take, target = name.removesuffix(".wav").split("-")
        rows.writerow((name, fold, target, kind, kind in ESC10_KINDS, source, take))
    write_bytes_atomically(folder / "esc50" / "meta" / "esc50.csv", table.getvalue().encode())
    write_bytes_atomically(folder / "worlds.jsonl", format_json_lines(worlds).encode())
    write_bytes_atomically(folder / "videos.jsonl", format_json_lines(sources).encode())
