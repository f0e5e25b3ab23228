"""Reads region features in common file layouts, record by record; pickles are restricted (safe_unpickler.py).

| layout | what |
|---|---|
| lmdb | the original's LMDB (vilbert-multi-task: arrays), its first one (vilbert_beta: rows of text, base64), MMF's |
| tensorpack | the original's pretraining LMDB: msgpack records of features, classes, boxes, sizes, id |
| npy | files of the original's extractor, or MMF's pairs NAME.npy and NAME_info.npy, in a folder |
| tsv | bottom-up-attention's TSV with 6 columns, 7 (class probabilities) or LXMERT's 10 |
| hdf5 | image_features with image_bb and spatial_features, of fixed or of `pos_boxes` rows; imgid2idx.pkl next to it |

A folder of several LMDB or TSV files is read as one, in the order of their names. No layout has the whole image as a
region: the original's readers add it, as comodal does (data/captions/caption_dataset.py).
"""

import codecs
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from comodal.data.hdf5_files import check_hdf5_bytes, open_hdf5
from comodal.data.regions.box_units import BOXES_ARE_FRACTIONS, BoxUnitsError, has_normalized_boxes
from comodal.data.regions.feature_records import (
    FeatureRecord,
    SkippedRecordError,
    build_or_skip_record,
    parse_feature_record,
)
from comodal.data.regions.safe_unpickler import RefusedPickleError, load_npy, load_pickle
from comodal.errors import DataError
from comodal.text_files import decode_text, read_json

FeatureLayout = Literal["lmdb", "tensorpack", "npy", "tsv", "hdf5"]
TSV_COLUMNS = {
    6: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    7: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features", "cls_prob"),
    10: ("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes",
         "boxes", "features"),
}  # fmt: skip
TSV_PROBE_BYTES = 1 << 10  # of the first line: enough to see UTF-16
HDF5_COLUMNS = ("image_features", "image_bb", "spatial_features")
TSV_HEADER_NAMES = ("image_id", "img_id")
MISSING_LEGACY_EXTRA = 'needs the extra: pip install "comodal[legacy]"'

FeatureEntries = Iterator[tuple[str, Callable[[], FeatureRecord]]]  # a name, and a function that reads the record
ReportProgress = Callable[[float], object]  # the fraction of the source that is read


def report_part_progress(report: Callable[[float], object], index: int, num_parts: int, fraction: float) -> None:
    """Report the progress in one of several parts as the progress in all of them."""
    report((index + fraction) / num_parts)


def detect_feature_layout(source: Path) -> FeatureLayout:
    """The layout of a file or folder.

    Raises:
        DataError: It does not exist, or its layout is not supported.
    """
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder")
    kinds: dict[str, FeatureLayout] = {
        ".lmdb": "lmdb", ".mdb": "lmdb", ".tsv": "tsv", ".h5": "hdf5", ".hdf5": "hdf5", ".npy": "npy",
    }  # fmt: skip
    if (source / "data.mdb").is_file() or any(source.glob("*.lmdb")):
        return "lmdb"
    if source.is_dir() and any(source.rglob("*.npy")):
        return "npy"
    if source.is_dir() and any(source.glob("*.tsv*")):
        return "tsv"
    for suffix in (suffix.lower() for suffix in source.suffixes if source.is_file()):
        if suffix in kinds:
            return kinds[suffix]
    raise DataError(
        f"{source}: unknown layout of region features. Supported: LMDB (of vilbert-multi-task, "
        "vilbert_beta, MMF and tensorpack), bottom-up-attention's and LXMERT's .tsv, folders of .npy, and .hdf5"
    )


def read_records(
    source: Path, layout: FeatureLayout, start: int = 0, report_progress: ReportProgress = lambda _fraction: None
) -> Generator[FeatureRecord | SkippedRecordError, None, None]:
    """All records of a source from an index on, one at a time; an unusable record is yielded as a SkippedRecordError.

    Raises:
        DataError: The source as a whole cannot be read.
    """
    readers: dict[FeatureLayout, tuple[Callable[[Path, ReportProgress], FeatureEntries], str]] = {
        "lmdb": (iterate_lmdb, "*.lmdb"),
        "tensorpack": (iterate_lmdb, "*.lmdb"),
        "npy": (iterate_npy, ""),
        "tsv": (iterate_tsv, "*.tsv*"),
        "hdf5": (iterate_hdf5, ""),
    }
    entries, pattern = readers[layout]
    has_parts = pattern and source.is_dir() and not (source / "data.mdb").is_file()
    parts = sorted(source.glob(pattern)) if has_parts else [source]
    record_index = 0
    for index, part in enumerate(parts):
        report_part = partial(report_part_progress, report_progress, index, len(parts))
        for name, read_record in entries(part, report_part):
            if record_index >= start:
                yield build_or_skip_record(name, read_record)
            record_index += 1


def iterate_lmdb(source: Path, report_progress: ReportProgress) -> FeatureEntries:
    """Any of the LMDB layouts. The stored list of keys, which an interrupted writer omits, is not needed."""
    try:
        import lmdb
    except ImportError as error:
        raise DataError(f"{source}: LMDB {MISSING_LEGACY_EXTRA}") from error
    try:
        with (
            lmdb.open(str(source), subdir=source.is_dir(), readonly=True, lock=False) as environment,
            environment.begin(buffers=True) as transaction,
        ):
            check_lmdb_length(source, environment)
            keys = transaction.get(b"keys")
            if keys is not None and (faults := check_key_list(bytes(keys))):
                yield "keys", faults
            count = environment.stat()["entries"]
            for index, (key, value) in enumerate(transaction.cursor()):
                name = bytes(key).decode("utf-8", "replace")
                report_progress(index / count)
                if name not in ("keys", "__keys__", "__len__"):
                    yield name, partial(parse_lmdb_record, value, name)
    except lmdb.Error as error:
        raise DataError(f"{source}: an incomplete or damaged LMDB ({error})") from error


def check_lmdb_length(source: Path, environment: Any) -> None:
    """Check for truncation first: reading beyond the end of a truncated LMDB kills the process."""
    expected_bytes = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    file_bytes = (source / "data.mdb" if source.is_dir() else source).stat().st_size
    if file_bytes < expected_bytes:
        raise DataError(f"{source}: {file_bytes:,} of {expected_bytes:,} bytes are present; the copy is incomplete")


def check_key_list(keys: bytes) -> Callable[[], FeatureRecord] | None:
    """The list of keys is not needed, but an unsafe one reveals an unsafe file."""
    try:
        load_pickle(keys)
    except DataError as error:
        return partial(raise_error, error)
    return None


def raise_error(error: DataError) -> FeatureRecord:
    """Raise an error, deferred until its record is read."""
    raise error


def parse_lmdb_record(value: memoryview, name: str) -> FeatureRecord:
    """A value of an LMDB: a pickle begins with 0x80 or an ASCII letter, a msgpack list of eight with 0x98."""
    data = bytes(value)
    if data[:1] == b"\x98":
        return parse_tensorpack_record(data)
    fields = load_pickle(data)
    if not isinstance(fields, dict):
        raise ValueError(f"a {type(fields).__name__}, not a dictionary")
    return parse_feature_record(fields, name)


def parse_tensorpack_record(data: bytes) -> FeatureRecord:
    """The pretraining records: features, classes, boxes, number of boxes, height, width, id, caption."""
    try:
        import msgpack
    except ImportError as error:
        raise DataError(f"tensorpack's LMDB {MISSING_LEGACY_EXTRA}") from error
    try:
        values = msgpack.unpackb(data, raw=False, object_hook=decode_msgpack_array, strict_map_key=False)
    except (msgpack.UnpackException, UnicodeDecodeError) as error:
        raise ValueError(f"an incomplete msgpack record ({error})") from error
    features, classes, boxes, count, height, width, image = values[:7]
    fields = {"features": features, "cls_prob": classes, "boxes": boxes, "num_boxes": count}
    return parse_feature_record(fields | {"image_h": height, "image_w": width, "image_id": image}, str(image))


def decode_msgpack_array(value: dict) -> Any:
    """The array encoding of msgpack_numpy; object arrays (which it pickles) are refused."""
    fields = {(name.decode() if isinstance(name, bytes) else name): item for name, item in value.items()}
    if "nd" not in fields:
        return value
    kind = fields.get("kind", b"")
    if kind in (b"O", "O"):
        raise RefusedPickleError("refused: it holds pickled objects")
    dtype = np.dtype(fields["type"] if isinstance(fields["type"], str) else fields["type"].decode())
    if dtype.hasobject:
        raise RefusedPickleError("refused: it holds pickled objects")
    return np.frombuffer(fields["data"], dtype).reshape(fields.get("shape", ()))


def iterate_npy(source: Path, report_progress: ReportProgress) -> FeatureEntries:
    """One or two files for each image; the id is the one in the file, or the file's path below the folder."""
    files = [source] if source.is_file() else sorted(source.rglob("*.npy"))
    root = source.parent if source.is_file() else source
    for index, path in enumerate(files):
        report_progress(index / len(files))
        if not path.stem.endswith("_info"):
            image = path.relative_to(root).with_suffix("").as_posix()
            yield image, partial(read_npy_record, path, image)


def read_npy_record(path: Path, image: str) -> FeatureRecord:
    """The original's dictionary in a file, or features with MMF's dictionary in a second file."""
    value = load_npy(path)
    if isinstance(value, dict):
        return parse_feature_record(value, image)
    info = load_npy(path.with_name(f"{path.stem}_info.npy"))
    if not isinstance(info, dict):
        raise ValueError(f"{path.stem}_info.npy holds a {type(info).__name__}, not a dictionary")
    return parse_feature_record(info | {"features": value}, image)


def iterate_tsv(source: Path, report_progress: ReportProgress) -> FeatureEntries:
    """One line for each image, with base64 columns."""
    size, done = source.stat().st_size, 0
    with source.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            done += len(line)
            if line_number == 1:
                decode_text(line[:TSV_PROBE_BYTES].rstrip(b"\r\n"), source)
                line = line.removeprefix(codecs.BOM_UTF8)
            report_progress(done / size)
            cells = line.rstrip(b"\r\n").split(b"\t")
            name = cells[0].decode("utf-8", "replace")
            if name not in TSV_HEADER_NAMES:
                yield name or f"line {line_number}", partial(parse_tsv_record, cells)


def parse_tsv_record(cells: list[bytes]) -> FeatureRecord:
    """Bottom-up-attention writes width before height, LXMERT height before width."""
    if len(cells) not in TSV_COLUMNS:
        raise ValueError(f"{len(cells)} columns; supported numbers of columns: {', '.join(map(str, TSV_COLUMNS))}")
    return parse_feature_record(dict(zip(TSV_COLUMNS[len(cells)], cells, strict=True)), "")


def iterate_hdf5(source: Path, report_progress: ReportProgress) -> FeatureEntries:
    """Rows of all images, or a block of rows for each; image sizes follow from the boxes in pixels and in fractions."""
    with open_hdf5(source) as file:
        missing = [name for name in HDF5_COLUMNS if name not in file]
        if missing:
            raise DataError(f"{source} has no {', '.join(missing)}; it has {', '.join(file)}")
        lengths = {name: len(file[name]) for name in HDF5_COLUMNS}
        if len(set(lengths.values())) > 1:
            described = ", ".join(f"{length:,} of {name}" for name, length in lengths.items())
            raise DataError(f"{source}: its columns have different numbers of rows: {described}")
        blocks = read_hdf5_blocks(source, file)
        names = read_npy_image_ids(source, len(blocks))
        for index, (name, block) in enumerate(zip(names, blocks, strict=True)):
            report_progress(index / len(blocks))
            yield name, partial(read_hdf5_record, file, block, name)


def read_hdf5_blocks(source: Path, file: Any) -> Sequence[int | slice]:
    """The row of each image, or its block of rows: `pos_boxes` holds the first and the end of each block.

    Raises:
        DataError: The blocks overlap, or are not rows of the file.
    """
    features = file["image_features"]
    if features.ndim == 3:
        return range(len(features))
    check_hdf5_bytes(file["pos_boxes"], len(file["pos_boxes"]), "pos_boxes")
    ends = np.asarray(file["pos_boxes"][:])
    if ends.dtype.kind not in "iu" or ends.ndim != 2 or ends.shape[1] != 2:
        raise DataError(f"{source}: pos_boxes of {ends.dtype} and shape {ends.shape}, not the two ends of each block")
    firsts = ends[ends[:, 1] > ends[:, 0]]
    firsts = firsts[np.argsort(firsts[:, 0])].astype(np.int64)
    if (ends[:, 1] < ends[:, 0]).any() or (ends < 0).any() or (ends > len(features)).any():
        raise DataError(f"{source}: pos_boxes are not blocks of its {len(features):,} rows")
    if (firsts[1:, 0] < firsts[:-1, 1]).any():
        row = int(firsts[1:][firsts[1:, 0] < firsts[:-1, 1]][0, 0])
        raise DataError(f"{source}: row {row} is in two blocks of pos_boxes")
    return [slice(*pair) for pair in ends.tolist()]


def read_hdf5_record(file: Any, block: int | slice, name: str) -> FeatureRecord:
    """One image; rows of zeros at the end are padding."""
    try:
        for column in HDF5_COLUMNS:
            rows = 1 if isinstance(block, int) else len(range(*block.indices(len(file[column]))))
            check_hdf5_bytes(file[column], rows, column)
        features, boxes, box_fractions = (np.asarray(file[column][block]) for column in HDF5_COLUMNS)
    except OSError as error:  # h5py's own, for a damaged part of a file
        raise ValueError(str(error)) from error
    if features.dtype.kind != "f":
        raise ValueError(f"features of {features.dtype}: quantized features are not read")
    is_real = boxes[:, 2] > boxes[:, 0]
    if not is_real.any():
        raise ValueError("no box has a width")
    widest, highest = int(np.argmax(box_fractions[:, 2] * is_real)), int(np.argmax(box_fractions[:, 3] * is_real))
    width, height = (
        float(boxes[widest, 2] / box_fractions[widest, 2]),
        float(boxes[highest, 3] / box_fractions[highest, 3]),
    )
    if not (np.isfinite(width) and np.isfinite(height)):
        raise ValueError("the image size cannot be inferred from the boxes")
    if has_normalized_boxes(boxes[is_real]):
        raise BoxUnitsError(BOXES_ARE_FRACTIONS, "no value of image_bb is above 1; it holds boxes in pixels")
    return FeatureRecord(name, features[is_real], boxes[is_real], round(width), round(height), None)


def read_npy_image_ids(source: Path, count: int) -> list[str]:
    """The images' ids from NAME_imgid2idx or imgid2idx, .pkl or .json, next to the file.

    Raises:
        DataError: There is none, it lacks the id of a row, or it could run code.
    """
    names = [f"{stem}{suffix}" for stem in (f"{source.stem}_imgid2idx", "imgid2idx") for suffix in (".pkl", ".json")]
    path = next((source.parent / name for name in names if (source.parent / name).is_file()), None)
    if path is None:
        raise DataError(f"{source} has no image ids: put {names[0]} ({{image id: row}}) next to it")
    try:
        rows_by_id = read_json(path) if path.suffix == ".json" else load_pickle(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except DataError as error:
        raise error if path.suffix == ".json" else type(error)(f"{path}: {error}") from error
    if not isinstance(rows_by_id, dict):
        raise DataError(f"{path}: not a dictionary {{image id: row}}")
    return invert_row_index(path, rows_by_id, count)


def invert_row_index(path: Path, rows_by_id: dict[Any, Any], count: int) -> list[str]:
    """The id of each row.

    Raises:
        DataError: A value is not a row of the file, a row has no id or two, or an id has two rows.
    """
    ids: dict[int, str] = {}
    for image, row in rows_by_id.items():
        if not isinstance(row, int | np.integer) or isinstance(row, bool) or not 0 <= row < count:
            raise DataError(f"{path}: the row of image {image} is {row!r:.40}, not one of the {count:,} rows from 0")
        if ids.setdefault(int(row), str(image)) != str(image):
            raise DataError(f"{path}: the images {ids[int(row)]} and {image} have the same row {row}")
    if missing := [row for row in range(count) if row not in ids]:
        raise DataError(f"{path} has no id for {len(missing):,} of {count:,} rows, such as row {missing[0]}")
    if len(set(ids.values())) < count:
        raise DataError(f"{path}: an image has two rows: ids as numbers and as text are the same")
    return [ids[row] for row in range(count)]
