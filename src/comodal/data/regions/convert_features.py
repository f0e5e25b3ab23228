"""Converts feature files of other projects to a region store: streaming, resumable, with a report of skips."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from comodal.console import Table
from comodal.data.output_folder import lock_output_folder, translate_os_errors
from comodal.data.regions.box_units import SizedBoxes, check_source_units, sample_evenly
from comodal.data.regions.feature_files import FeatureLayout, detect_feature_layout, read_records
from comodal.data.regions.feature_records import FeatureRecord, SkippedRecordError
from comodal.data.regions.region_store import BOXES_FILE, JOURNAL_FILE, FeatureType, RegionStore, RegionWriter
from comodal.data.regions.store_summary import EXTRACTION_REPORT_FILE, RegionStoreSummary, summarize_store
from comodal.errors import DataError
from comodal.files import fingerprint_files, open_to_write, write_bytes_atomically
from comodal.progress import Progress
from comodal.text_files import parse_json

SAMPLED_RECORDS = 25  # records used to infer the number of features
BOX_BYTES = 16
PARTIAL_REPORT_SUFFIX = ".report.part"  # records skipped so far


def convert_regions(
    source: Path, out: Path, layout: FeatureLayout | None = None, dtype: FeatureType = "float16"
) -> RegionStoreSummary:
    """Makes a region store from features extracted by other software.

    The command can be interrupted and resumed. OUT/report.jsonl lists the skipped records and why. A record that could
    run code is refused by name, and none of it is run.

    Args:
        source: LMDB, TSV, HDF5, or a folder of .npy files.
        out: The store to make.
        layout: Of the source; by default detected.
        dtype: The type of stored features.

    Returns:
        The number of converted records, and of skipped ones by reason.

    Raises:
        DataError: The source cannot be read, no record can be used, OUT holds something else, or the disk is full.
    """
    source, out = Path(source), Path(out)
    layout = layout or detect_feature_layout(source)
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder")
    about = {"source": source.name, "bytes": count_source_bytes(source), "layout": layout, "dtype": dtype}
    about["contents"] = fingerprint_files(list_source_files(source))
    with translate_os_errors(out), lock_output_folder(out):
        if not (out / "about.json").exists():
            write_region_store(source, out, layout, dtype, about)
        for path in (
            out / PARTIAL_REPORT_SUFFIX,
            out / JOURNAL_FILE,
            *out.glob(".*.[0-9]*.part"),
        ):  # left by interrupted commands
            path.unlink(missing_ok=True)
        store = RegionStore(out)
        if store.about["provenance"] != about:
            raise DataError(f"{out} was created from {store.about['provenance']}; use another folder")
        summary = summarize_store(store)
    table = Table(f"{source.name} ({layout})", "records", right=[1])
    for name, count in {"accepted": summary.images, **summary.refused}.items():
        table.add_row(name, f"{count:,}")
    table.show()
    summary.check()
    return summary


def count_source_bytes(source: Path) -> int:
    """The size of a source in bytes."""
    return sum(path.stat().st_size for path in list_source_files(source))


def list_source_files(source: Path) -> list[Path]:
    """The files of a source, without lock files of readers."""
    files = [source] if source.is_file() else sorted(source.rglob("*"))
    return [path for path in files if path.is_file() and path.name != "lock.mdb"]


def write_region_store(
    source: Path, out: Path, layout: FeatureLayout, dtype: FeatureType, about: dict[str, Any]
) -> None:
    """Write all records that are complete and have the store's numbers of features and classes."""
    dim, classes = infer_feature_sizes(source, layout)
    with RegionWriter(out, dim, classes, dtype, about) as writer, SkippedLog(out / PARTIAL_REPORT_SUFFIX) as log:
        start = len(writer.images) + len(log.lines)
        with (
            show_read_progress(start) as read_progress,
            closing(read_records(source, layout, start, read_progress)) as records,
        ):
            for record in records:
                if skipped := record if isinstance(record, SkippedRecordError) else add_record(record, writer):
                    log.add(skipped)
                read_progress.records += 1
        reasons = Counter(parse_json(line.decode(), log.path)["reason"] for line in log.lines)
        check_source_units(source, reasons, sample_written_boxes(writer), len(writer.images))
        write_bytes_atomically(out / EXTRACTION_REPORT_FILE, b"".join(log.lines))


def sample_written_boxes(writer: RegionWriter) -> list[SizedBoxes]:
    """The boxes of an even sample of the images that are written, also by an interrupted writer."""
    ends = np.cumsum([image.regions for image in writer.images])
    sample = []
    with (writer.folder / f".{BOXES_FILE}.part").open("rb") as file:
        for index in sample_evenly(len(writer.images)):
            _, regions, width, height = writer.images[index]
            file.seek(BOX_BYTES * int(ends[index] - regions))
            boxes = np.frombuffer(file.read(BOX_BYTES * regions), "<f4").reshape(-1, 4)
            sample.append(SizedBoxes(boxes, width, height))
    return sample


def infer_feature_sizes(source: Path, layout: FeatureLayout) -> tuple[int, int]:
    """Number of features and classes of a region, by the majority of the first records.

    Raises:
        DataError: No record can be used.
    """
    sizes, reasons, faults = Counter[tuple[int, int]](), [], Counter[str]()
    valid: list[SizedBoxes] = []
    count = 0
    with closing(read_records(source, layout)) as records:
        for count, record in enumerate(records, 1):
            if isinstance(record, FeatureRecord):
                sizes[record.features.shape[1], 0 if record.classes is None else record.classes.shape[1]] += 1
                valid.append(SizedBoxes(record.boxes, record.width, record.height))
            else:
                reasons.append(f"{record.image}: {record.detail}")
                faults[record.reason] += 1
            if count >= SAMPLED_RECORDS and (sizes or faults):
                break
    judged = "records" if count < SAMPLED_RECORDS else "records at its beginning"
    check_source_units(source, faults, valid, len(valid), judged)
    if not sizes:
        raise DataError(f"{source} has no usable record ({'; '.join(reasons[:3]) or 'it is empty'})")
    return sizes.most_common(1)[0][0]


def add_record(record: FeatureRecord, writer: RegionWriter) -> SkippedRecordError | None:
    """Add a record to the store, or return why not."""
    if record.image in writer.written_ids:
        return SkippedRecordError(record.image, "id twice", "an earlier record has the same id")
    try:
        writer.add(record.image, record.features, record.boxes, record.width, record.height, record.classes)
    except ValueError as error:
        return SkippedRecordError(record.image, "does not fit", str(error))
    return None


class SkippedLog:
    """Lines about skipped records, each flushed to disk before the next record, so that the command can resume."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_bytes() if path.exists() else b""
        self.lines = [line for line in text.splitlines(keepends=True) if line.endswith(b"\n")]

    def __enter__(self) -> "SkippedLog":
        self.file = open_to_write(self.path, "a")
        self.file.truncate(sum(map(len, self.lines)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def add(self, skipped: SkippedRecordError) -> None:
        self.lines.append(json.dumps(skipped._asdict()).encode() + b"\n")
        self.file.write(self.lines[-1])
        self.file.flush()


class ReadProgress:
    """The position of a reader, for the progress bar."""

    def __init__(self, progress: Progress, before: int) -> None:
        self.progress, self.records, self.before, self.start = progress, before, before, time.monotonic()

    def __call__(self, fraction: float) -> None:
        records_per_second = (self.records - self.before) / max(time.monotonic() - self.start, 1e-9)
        self.progress.show(fraction, f"{self.records:,} records, {records_per_second:,.0f} a second")


@contextmanager
def show_read_progress(before: int) -> Iterator[ReadProgress]:
    """Progress, speed and remaining time."""
    with Progress("reading", 1.0) as progress:
        meter = ReadProgress(progress, before)
        yield meter
        meter(1.0)
