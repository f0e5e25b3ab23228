"""Task data sets in the official file formats, from the synthetic worlds; each set in a folder of its name.

File names, columns and fields are those of the original data sets.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from comodal.files import write_bytes_atomically
from comodal.synthetic.formats import coco_set, dcase_folders, flickr30k_set, nlvr2_files, urbansound8k_files, vcr_set
from comodal.synthetic.scenes.media_writers import encode_json
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions

Job = Callable[[], None]


class TaskSet(NamedTuple):
    """How one set is made: many independent files, then the lists of all of them."""

    jobs: Callable[[Path, SynthesisOptions], list[Job]]
    write_lists: Callable[[Path, SynthesisOptions], dict[str, int]]


TASK_SETS = {
    "coco": TaskSet(coco_set.list_coco_jobs, coco_set.write_coco_lists),
    "flickr30k": TaskSet(flickr30k_set.list_flickr30k_jobs, flickr30k_set.write_flickr30k_lists),
    "vcr": TaskSet(vcr_set.list_vcr_jobs, vcr_set.write_vcr_lists),
    "nlvr2": TaskSet(nlvr2_files.list_nlvr2_jobs, nlvr2_files.write_nlvr2_lists),
    "dcase2013": TaskSet(dcase_folders.list_jobs_2013, dcase_folders.write_lists_2013),
    "tau": TaskSet(dcase_folders.list_jobs_tau, dcase_folders.write_lists_tau),
    "urbansound8k": TaskSet(urbansound8k_files.list_urbansound8k_jobs, urbansound8k_files.write_urbansound8k_lists),
}


def select_task_sets(tasks: Sequence[str]) -> list[str]:
    """The sets of these names; "all" selects all of them.

    Raises:
        ValueError: there is no set of such a name.
    """
    unknown = sorted(set(tasks) - {*TASK_SETS, "all"})
    if unknown:
        raise ValueError(f"unknown task set {unknown[0]!r}; available are {', '.join(TASK_SETS)}, and all")
    return [name for name in TASK_SETS if name in tasks or "all" in tasks]


def list_unfinished_sets(folder: Path, names: Sequence[str]) -> list[str]:
    """The sets that are not finished."""
    return [name for name in names if not _get_info_path(folder, name).exists()]


def finish_task_set(folder: Path, options: SynthesisOptions, name: str) -> None:
    """Write the lists of a set, and last its about.json, which marks it as complete."""
    counts = TASK_SETS[name].write_lists(folder / name, options)
    write_bytes_atomically(
        _get_info_path(folder, name), encode_json({"kind": "synthetic task set", "set": name, **counts})
    )


def _get_info_path(folder: Path, name: str) -> Path:
    return folder / name / "about.json"
