"""Other people's feature files -> a region store: streaming, resumable, with a report of what was not taken."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from comodal.console import Table
from comodal.data.output_folder import lock_output_folder, translate_os_errors
from comodal.data.regions.box_units import check_source_units
from comodal.data.regions.feature_files import FeatureLayout, detect_feature_layout, read_records
from comodal.data.regions.feature_records import FeatureRecord, SkippedRecordError
from comodal.data.regions.region_store import JOURNAL_FILE, FeatureType, RegionStore, RegionWriter
from comodal.errors import DataError
from comodal.files import fingerprint_files, write_bytes_atomically
from comodal.progress import Progress
from comodal.text_files import parse_json, read_json_lines

SAMPLED_RECORDS = 25  # records that tell how many features a region has
PARTIAL_REPORT_SUFFIX = ".report.part"  # what was skipped so far


def convert_regions(
    source: Path, out: Path, layout: FeatureLayout | None = None, dtype: FeatureType = "float16"
) -> dict[str, int]:
    """Make a region store of features that others have extracted.

    Killed and started again, it goes on after the last record. What was not taken, and why, is in OUT/report.jsonl; a
    record that could run code is refused by name, and nothing of it is run.

    Args:
        source: LMDB, TSV, HDF5, or a folder of .npy files.
        out: The store to make.
        layout: Of the source; by default recognised.
        dtype: How features are kept.

    Returns:
        How many records were taken, and how many not, by reason.

    Raises:
        DataError: The source cannot be read, no record can be taken, OUT holds something else, or the disk is full.
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
        ):  # what killed commands left
            path.unlink(missing_ok=True)
        store = RegionStore(out)
        if store.about["made_from"] != about:
            raise DataError(f"{out} was made otherwise, from {store.about['made_from']}: give another folder")
        counts = Counter(line["reason"] for _, line in read_json_lines(out / "report.jsonl"))
    table = Table(f"{source.name} ({layout})", "records", right=[1])
    for name, count in {"taken": len(store), **counts}.items():
        table.add_row(name, f"{count:,}")
    table.show()
    return {"taken": len(store), **counts}


def count_source_bytes(source: Path) -> int:
    """How large a source is."""
    return sum(path.stat().st_size for path in list_source_files(source))


def list_source_files(source: Path) -> list[Path]:
    """The files of a source; a lock that a reader left is no part of it."""
    files = [source] if source.is_file() else sorted(source.rglob("*"))
    return [path for path in files if path.is_file() and path.name != "lock.mdb"]


def write_region_store(
    source: Path, out: Path, layout: FeatureLayout, dtype: FeatureType, about: dict[str, Any]
) -> None:
    """Takes all records that are whole and of the usual size."""
    dim, classes = infer_feature_sizes(source, layout)
    with RegionWriter(out, dim, classes, dtype, about) as writer, SkippedLog(out / PARTIAL_REPORT_SUFFIX) as notes:
        start = len(writer.images) + len(notes.lines)
        with show_read_progress(start) as meter, closing(read_records(source, layout, start, meter)) as records:
            for record in records:
                if skipped := record if isinstance(record, SkippedRecordError) else add_record(record, writer):
                    notes.add(skipped)
                meter.records += 1
        reasons = Counter(parse_json(line.decode(), notes.path)["reason"] for line in notes.lines)
        check_source_units(source, reasons, len(writer.images))
        write_bytes_atomically(out / "report.jsonl", b"".join(notes.lines))


def infer_feature_sizes(source: Path, layout: FeatureLayout) -> tuple[int, int]:
    """Features and classes of a region, as most of the first records have them.

    Raises:
        DataError: No record can be taken.
    """
    sizes, reasons, units = Counter[tuple[int, int]](), [], Counter[str]()
    with closing(read_records(source, layout)) as records:
        for number, record in enumerate(records, 1):
            if isinstance(record, FeatureRecord):
                sizes[record.features.shape[1], 0 if record.classes is None else record.classes.shape[1]] += 1
            else:
                reasons.append(f"{record.image}: {record.detail}")
                units[record.reason] += 1
            if number >= SAMPLED_RECORDS and (sizes or units):
                break
    check_source_units(source, units, sum(sizes.values()))
    if not sizes:
        raise DataError(f"{source} has no record that could be taken ({'; '.join(reasons[:3]) or 'it is empty'})")
    return sizes.most_common(1)[0][0]


def add_record(record: FeatureRecord, writer: RegionWriter) -> SkippedRecordError | None:
    """Adds a record to the store, or says why not."""
    if record.image in writer.known:
        return SkippedRecordError(record.image, "id twice", "an earlier record has the same id")
    try:
        writer.add(record.image, record.features, record.boxes, record.width, record.height, record.classes)
    except ValueError as error:
        return SkippedRecordError(record.image, "does not fit", str(error))
    return None


class SkippedLog:
    """Lines about what was skipped, each whole on disk before the next record, so that a killed command goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_bytes() if path.exists() else b""
        self.lines = [line for line in text.splitlines(keepends=True) if line.endswith(b"\n")]

    def __enter__(self) -> "SkippedLog":
        self.file = self.path.open("ab")
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
    """What a reader tells of its place, for the bar."""

    def __init__(self, progress: Progress, before: int) -> None:
        self.progress, self.records, self.before, self.start = progress, before, before, time.monotonic()

    def __call__(self, share: float) -> None:
        rate = (self.records - self.before) / max(time.monotonic() - self.start, 1e-9)
        self.progress.show(share, f"{self.records:,} records, {rate:,.0f} a second")


@contextmanager
def show_read_progress(before: int) -> Iterator[ReadProgress]:
    """How far, how fast, how long yet."""
    with Progress("reading", 1.0) as progress:
        meter = ReadProgress(progress, before)
        yield meter
        meter(1.0)
