"""Runs a plan of shards: in parallel, resumable, and with a report of refused items and why.

One shard is one task. Its tar, its index and its part of the report are renamed to their final names when they are
complete. The report is last and marks the shard as finished. An interrupted run resumes with the next shard and ends
with the same bytes, for any number of workers.
"""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import Field, asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import joblib

from comodal.console import print_line
from comodal.data.output_folder import (
    check_same_options,
    encode_settings_json,
    lock_output_folder,
    remove_partial_files,
    translate_os_errors,
)
from comodal.data.shards.shard_reader import ShardWriter
from comodal.data.shards.shard_report import ShardSummary, print_shard_report, read_shard_summary
from comodal.data.sources.split_names import SPLITS
from comodal.errors import DataError, MediaError, collect_media_warnings, wrap_item_errors
from comodal.files import encode_json_line, open_to_write, write_atomically, write_bytes_atomically
from comodal.progress import Progress
from comodal.text_files import read_json, read_json_lines, read_lines
from comodal.workers import CRASH_REASON, MAX_CRASHES, WorkerOptions, run_one_by_one, select_backend


@runtime_checkable
class ShardItem(Protocol):
    """An item that becomes one sample; a dataclass of simple values."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def key(self) -> str: ...

    @property
    def path(self) -> str: ...


ItemType = TypeVar("ItemType", bound=ShardItem)


class ShardSample(NamedTuple):
    members: dict[str, bytes]
    record: dict[str, Any]


@dataclass(frozen=True)
class ShardPlan(Generic[ItemType]):
    """The items of one shard, in their order."""

    split: str
    index: int
    items: tuple[ItemType, ...]

    def get_path(self, out: Path) -> Path:
        return out / self.split / f"{self.index:06d}.tar"


@dataclass(frozen=True)
class RunPlan(Generic[ItemType]):
    """The whole run, planned before any file is opened."""

    kind: str  # "clips" or "pairs"
    options: dict[str, Any]  # as JSON; other values give other shards
    shards: tuple[ShardPlan[ItemType], ...]
    refused: tuple[dict[str, Any], ...]  # report lines about items that are refused without being opened
    contents: str = ""  # a stamp of the files, which changes when one is replaced
    dataset: Mapping[str, Any] = field(default_factory=dict)  # `describe_lists`; empty without a list

    def compute_fingerprint(self) -> str:
        items = [[shard.split, shard.index, [asdict(item) for item in shard.items]] for shard in self.shards]
        text = json.dumps([items, self.refused, self.contents], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan_shards(split_of: dict[str, list[ItemType]], items_per_shard: int) -> tuple[ShardPlan[ItemType], ...]:
    """The items of each split, cut into shards."""
    return tuple(
        ShardPlan(split, start // items_per_shard, tuple(items[start : start + items_per_shard]))
        for split, items in split_of.items()
        for start in range(0, len(items), items_per_shard)
    )


def format_refusal(item: ShardItem, split: str, reason: str, detail: str) -> dict[str, Any]:
    """A line of the report."""
    return {
        "key": item.key, "path": item.path, "split": split, "status": "refused", "reason": reason, "detail": detail,
    }  # fmt: skip


def make_shards(
    plan: RunPlan[ItemType], read_sample: Callable[[ItemType], ShardSample], out: Path, pool: WorkerOptions
) -> ShardSummary:
    """Make the missing shards, merge the report, print its summary and return it.

    Args:
        plan: The shards to make.
        read_sample: Makes a sample of an item, or raises a MediaError; it is sent to the workers.
        out: The folder of the shards.
        pool: How many processes, and where.

    Raises:
        DataError: `out` holds something else, another command writes there, the disk is full, or no item can be used.
    """
    pool.check()
    with select_backend(pool.backend), translate_os_errors(out), lock_output_folder(out):
        about = out / "about.json"
        new_settings = {"kind": plan.kind, "format": 1, "options": plan.options, "plan": plan.compute_fingerprint()}
        new_settings |= {"dataset": dict(plan.dataset)} if plan.dataset else {}
        finished_before = check_same_options(out, new_settings)
        todo = [shard for shard in plan.shards if not is_shard_finished(shard, out)]
        if todo or not finished_before:
            write_bytes_atomically(about, encode_settings_json(new_settings | {"finished": False}))
            remove_partial_files(out)
            make_pending_shards(todo, plan, read_sample, out, pool.workers)
            report = merge_shard_reports(plan, out)
            write_bytes_atomically(about, encode_settings_json(new_settings | {"finished": True} | report))
        else:
            print_line(f"{out} is already finished; nothing to do")
        summary = read_shard_summary(out)
    print_shard_report(summary)
    if summary.refused and not any(summary.accepted.values()):
        raise DataError(
            f"none of the {sum(summary.refused.values()):,} items can be used; {out}/report.jsonl lists why"
        )
    return summary


def make_pending_shards(
    todo: list[ShardPlan[ItemType]],
    plan: RunPlan[ItemType],
    read_sample: Callable[[ItemType], ShardSample],
    out: Path,
    workers: int,
) -> None:
    """Make shards in parallel; a file that crashes its worker is found, refused and left out."""
    for split in {shard.split for shard in todo}:
        (out / split).mkdir(parents=True, exist_ok=True)
    workers = joblib.cpu_count() if workers == -1 else workers
    total = sum(len(shard.items) for shard in plan.shards)
    counter = ClipCounter(out, total - sum(len(shard.items) for shard in todo))
    failures = 0
    with Progress("clips", total, counter.before, counter.poll):
        while todo:
            crashed = read_crashed_keys(out)
            streams = joblib.parallel.get_active_backend()[0].supports_return_generator  # Ray returns all at the end
            returned = "generator_unordered" if streams else "list"
            # one job would run in this process, which a decoder crash would end: so two, one idle
            pool = joblib.Parallel(n_jobs=max(2, workers), pre_dispatch=workers, batch_size=1, return_as=returned)
            try:
                for counts in pool(joblib.delayed(make_shard)(shard, read_sample, out, crashed) for shard in todo):
                    counter.add(*counts)
            except BrokenProcessPool as error:
                crashing = find_crashing_items(todo, read_sample, out)
                write_bytes_atomically(out / "crashed.json", encode_settings_json(sorted(crashed | crashing)))
                failures = 0 if crashing else failures + 1
                if failures == MAX_CRASHES:
                    raise DataError(f"{out}: workers keep crashing, possibly for lack of memory; use fewer") from error
            else:
                if not all(is_shard_finished(shard, out) for shard in todo):
                    raise DataError(f"{out} is not visible to all workers: it must be on a shared file system")
            todo = [shard for shard in todo if not is_shard_finished(shard, out)]


def make_shard(
    shard: ShardPlan[ItemType], read_sample: Callable[[ItemType], ShardSample], out: Path, crashed: frozenset[str]
) -> tuple[int, float]:
    """Write one shard with its part of the report; returns how many items and how many seconds of media."""
    tar, lines = shard.get_path(out), []
    progress = tar.with_name(f".{tar.stem}.progress")
    progress.unlink(missing_ok=True)
    with translate_os_errors(out), open_to_write(progress, "w") as started_file:
        with ShardWriter(tar) as writer:
            for item in shard.items:
                try:
                    if item.key in crashed:
                        raise MediaError(item.path, *CRASH_REASON)
                    with collect_media_warnings() as notes, wrap_item_errors(item.path):
                        sample = read_sample(item)
                        writer.encode_record(item.key, sample.members, sample.record)
                except MediaError as error:
                    line = format_refusal(item, shard.split, error.reason, error.detail)
                else:
                    writer.write(item.key, sample.members, sample.record)
                    line = format_accepted_item(item, shard.split, sample) | ({"notes": notes} if notes else {})
                lines.append(line)
                started_file.write(f"{line.get('seconds', 0.0)}\n".encode())
                started_file.flush()
        write_bytes_atomically(get_report_path(tar), b"".join(encode_json_line(line) for line in lines))
    progress.unlink(missing_ok=True)
    return len(lines), sum((line.get("seconds", 0.0) for line in lines), 0.0)


def format_accepted_item(item: ShardItem, split: str, sample: ShardSample) -> dict[str, Any]:
    """A line of the report about a sample that is in the shards."""
    record = sample.record
    line = {"key": item.key, "path": item.path, "split": split, "status": "accepted", "seconds": record["seconds"]}
    size = f"{record['width']}x{record['height']}"
    return line | {"frames": len(record["frames"]), "size": size} | {k: record[k] for k in ("label",) if k in record}


def find_crashing_items(
    todo: list[ShardPlan[ItemType]], read_sample: Callable[[ItemType], ShardSample], out: Path
) -> frozenset[str]:
    """Of the items that were being read when a worker died, those that crash a process of their own."""
    crashing = set()
    for shard in todo:
        progress = shard.get_path(out).with_name(f".{shard.index:06d}.progress")
        if progress.is_file() and not is_shard_finished(shard, out):
            suspects = shard.items[len(read_lines(progress)) :][:1]
            crashing |= {item.key for item in suspects if is_crashing_item(read_sample, item)}
    return frozenset(crashing)


def is_crashing_item(read_sample: Callable[[ItemType], ShardSample], item: ItemType) -> bool:
    """Whether an item crashes the process that reads it; exceptions are reported when its shard is made again."""
    (future,) = run_one_by_one(read_sample, [item])
    return isinstance(future.exception(), BrokenProcessPool)


def read_crashed_keys(out: Path) -> frozenset[str]:
    path = out / "crashed.json"
    return frozenset(read_json(path)) if path.is_file() else frozenset()


class ClipCounter:
    """Counts the items of finished shards and of unfinished ones.

    Args:
        out: The folder of the shards.
        before: Items that were done before.
    """

    def __init__(self, out: Path, before: int) -> None:
        self.out, self.before = out, before
        self.items, self.seconds, self.max_items = 0, 0.0, 0
        self.start = time.monotonic()

    def add(self, items: int, seconds: float) -> None:
        """Record a finished shard."""
        self.items += items
        self.seconds += seconds

    def poll(self) -> tuple[int, str]:
        """The total number of items, and the rate."""
        items, seconds = count_started_items(self.out)
        items, seconds = self.items + items, self.seconds + seconds
        self.max_items = max(self.max_items, items)
        elapsed = max(time.monotonic() - self.start, 1e-9)
        return self.before + self.max_items, f"{items / elapsed:.1f} a second, {seconds / elapsed:.0f}x real time"


def count_started_items(out: Path) -> tuple[int, float]:
    """The number of items, and of seconds of media, in unfinished shards."""
    seconds = []
    for path in out.glob("*/.*.progress"):
        with contextlib.suppress(DataError, ValueError):
            seconds += [float(line) for line in read_lines(path)]
    return len(seconds), sum(seconds, 0.0)


def get_report_path(tar: Path) -> Path:
    return tar.with_suffix(".report.jsonl")


def is_shard_finished(shard: ShardPlan, out: Path) -> bool:
    """Whether its report exists, and unless it refused everything, the tar and the index."""
    tar = shard.get_path(out)
    if not get_report_path(tar).is_file():
        return False
    is_complete = tar.is_file() and tar.with_suffix(".index").is_file()
    return is_complete or not any('"accepted"' in line for line in read_lines(get_report_path(tar)))


def merge_shard_reports(plan: RunPlan, out: Path) -> dict[str, Any]:
    """Write OUT/report.jsonl and count what is in it."""
    clips, seconds, refused, noted = Counter[str](), Counter[str](), Counter[str](), 0
    with write_atomically(out / "report.jsonl") as temporary, temporary.open("wb") as merged:
        for line in iterate_report_lines(plan, out):
            merged.write(encode_json_line(line))
            if line["status"] == "accepted":
                clips[line["split"]] += 1
                seconds[line["split"]] += line["seconds"]
                noted += "notes" in line
            else:
                refused[line["reason"]] += 1
    return {
        "accepted": {split: clips[split] for split in SPLITS},
        "seconds": {split: round(seconds[split], 3) for split in SPLITS},
        "refused": dict(sorted(refused.items())),
        "noted": noted,
    }


def iterate_report_lines(plan: RunPlan, out: Path) -> Iterator[dict[str, Any]]:
    for shard in plan.shards:
        yield from (line for _, line in read_json_lines(get_report_path(shard.get_path(out))))
    yield from plan.refused
