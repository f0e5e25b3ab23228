"""One record of another project's feature file: its arrays, checked for consistency, whatever the field names are."""

import binascii
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from comodal.data.regions.box_units import BoxFault, BoxUnitsError, check_box_units, check_boxes_within_image
from comodal.data.regions.safe_unpickler import RefusedPickleError
from comodal.errors import DataError, MediaError, wrap_item_errors

FIELD_NAMES = {
    "features": ("features", "feature"),
    "boxes": ("boxes", "bbox"),
    "width": ("image_w", "image_width"),
    "height": ("image_h", "image_height"),
    "classes": ("cls_prob",),
    "image": ("image_id",),
}
MIN_SPREAD_VALUES = 16  # needed to measure the spread of features
MAX_ROUNDING = 0.01  # of a probability
MAX_FLOAT16_EXPONENT, UPCAST_BITS = 22, 0x1FFF  # magnitudes below 2^8
MIN_FLOAT16_VALUES = 64  # so few arbitrary ones are never all plausible
MIN_PLAUSIBLE_FRACTION = 0.98  # of arbitrary bits, 0.72 are plausible
MAX_OCTAVES = 30  # between the small and the large features of an image; those of networks span about 10


class FeatureRecord(NamedTuple):
    """The regions of one image; boxes are left, top, right, bottom in pixels."""

    image: str
    features: Float[np.ndarray, "regions dim"]
    boxes: Float[np.ndarray, "regions 4"]
    width: int
    height: int
    classes: Float[np.ndarray, "regions classes"] | None


class SkippedRecordError(NamedTuple):
    """A record that is skipped."""

    image: str
    reason: Literal["refused", "damaged", "does not fit", "id twice"] | BoxFault
    detail: str


def build_or_skip_record(image: str, read_record: Callable[[], FeatureRecord]) -> FeatureRecord | SkippedRecordError:
    """A record, or the reason why it is skipped, whatever reading it raises."""
    try:
        with wrap_item_errors(image):
            return build_or_refuse_record(image, read_record)
    except MediaError as error:
        return SkippedRecordError(image, "damaged", error.detail)


def build_or_refuse_record(image: str, make: Callable[[], FeatureRecord]) -> FeatureRecord | SkippedRecordError:
    """A record, or the reason why it is skipped: one of those that reading and checking it raise."""
    try:
        record = make()
        check_record(record)
        return record
    except RefusedPickleError as error:
        return SkippedRecordError(image, "refused", str(error))
    except BoxUnitsError as error:
        return SkippedRecordError(image, error.reason, str(error))
    except (DataError, ValueError) as error:
        return SkippedRecordError(image, "damaged", str(error))


def check_record(record: FeatureRecord) -> None:
    """Check that all arrays are consistent, and that boxes are corners in pixels, within the image.

    Raises:
        BoxUnitsError: The boxes are not.
        ValueError: The arrays are not.
    """
    rows = len(record.features)
    classes = rows if record.classes is None else len(record.classes)
    if record.features.ndim != 2 or record.boxes.shape != (rows, 4) or classes != rows:
        raise ValueError(f"features {record.features.shape}, boxes {record.boxes.shape} and {classes} classes")
    if record.features.shape[1] < 1:
        raise ValueError("a region has no features")
    if record.classes is not None and record.classes.size and not is_probability(record.classes):
        raise ValueError(f"class probabilities from {record.classes.min():g} to {record.classes.max():g}")
    if record.width < 1 or record.height < 1:
        raise ValueError(f"an image of {record.width} x {record.height} pixels")
    for name, values in (("features", record.features), ("boxes", record.boxes), ("classes", record.classes)):
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"{name} are not finite")
    check_box_units(record.boxes, record.width, record.height)
    check_boxes_within_image(record.boxes, record.width, record.height)
    check_feature_spread(record.features)


def is_probability(values: Float[np.ndarray, "regions classes"]) -> bool:
    """Whether values are from 0 to 1, up to rounding. NaN is judged by itself."""
    return not ((values < -MAX_ROUNDING) | (values > 1 + MAX_ROUNDING)).any()


def check_feature_spread(features: Float[np.ndarray, "regions dim"]) -> None:
    """Check for values that were read with the wrong dtype: their magnitudes differ by tens of orders of magnitude, or
    the lower halves of float32 values, which are arbitrary bits, are all plausible float16 values.

    Raises:
        ValueError: These are.
    """
    if features.dtype == np.float32:
        low = np.ascontiguousarray(features).view(np.uint32) & 0xFFFF
        low = low[(low & UPCAST_BITS) != 0]  # which are 0 where float16 or bfloat16 values were converted to float32
        exponents = (low >> 10) & 31
        are_plausible = exponents <= MAX_FLOAT16_EXPONENT
        if len(low) >= max(MIN_FLOAT16_VALUES, features.size // 4) and are_plausible.mean() >= MIN_PLAUSIBLE_FRACTION:
            raise ValueError("features are float16, and were read as half as many float32 values")
    magnitudes = np.abs(features[features != 0])
    if len(magnitudes) >= MIN_SPREAD_VALUES:
        small, large = np.log2(np.percentile(magnitudes.astype(np.float64), [5, 95]))
        if large - small > MAX_OCTAVES:
            raise ValueError(
                f"features from 2^{small:.0f} to 2^{large:.0f}: their bytes are not of the type that they are read as "
                "(float64 or float16 as float32?)"
            )


def parse_feature_record(values: dict[str, Any], image: str) -> FeatureRecord:
    """A record from a dictionary, with any of the known field names; text is base64 of float32.

    The original's extractor always writes 100 rows and counts in num_boxes those with a score above 0; its readers
    use all rows, and so does this one.
    """
    fields: dict[str, Any] = {
        field_name: next((values[name] for name in names if values.get(name) is not None), None)
        for field_name, names in FIELD_NAMES.items()
    }
    missing = [name for name in ("features", "boxes", "width", "height") if fields[name] is None]
    if missing:
        raise ValueError(f"no {', '.join(missing)} among {sorted(map(str, values))}")
    is_text = isinstance(fields["boxes"], str | bytes)
    boxes = parse_float_matrix(fields["boxes"], parse_integer_field(values["num_boxes"]) if is_text else None, 4)
    rows = len(boxes)
    if not 0 <= parse_integer_field(values.get("num_boxes", rows)) <= rows:
        raise ValueError(f"num_boxes is {values['num_boxes']}, and there are {rows} boxes")
    features = parse_float_matrix(fields["features"], rows, None)
    if not isinstance(fields["features"], str | bytes) and np.asarray(fields["features"]).dtype.kind != "f":
        raise ValueError(f"features of {np.asarray(fields['features']).dtype}: quantized features are not read")
    classes = None if fields["classes"] is None else parse_float_matrix(fields["classes"], rows, None)
    name = image if fields["image"] is None else parse_image_id(fields["image"])
    width, height = parse_integer_field(fields["width"]), parse_integer_field(fields["height"])
    return FeatureRecord(name, features, boxes, width, height, classes)


def parse_image_id(value: Any) -> str:
    """An image's id: text, bytes or an integer, also as a NumPy value."""
    plain = value.item() if isinstance(value, np.generic | np.ndarray) and value.size == 1 else value
    if isinstance(plain, bool) or not isinstance(plain, str | bytes | int):
        raise ValueError(f"the id {plain!r:.40} is neither text nor an integer")
    name = plain.decode() if isinstance(plain, bytes) else str(plain)
    if not name or "\0" in name:
        raise ValueError(f"the id {name!r:.40} is empty or has a null character")
    return name


def parse_integer_field(value: Any) -> int:
    """An integer that may be text, or a float without a fraction."""
    number = float(value)
    if not number.is_integer():
        raise ValueError(f"{number:g} is not an integer")
    return int(number)


def parse_float_matrix(value: Any, rows: int | None, columns: int | None) -> Float[np.ndarray, "rows columns"]:
    """A float32 matrix of this shape, from an array or from base64; None stands for any number."""
    if isinstance(value, str | bytes):
        data = binascii.a2b_base64(value, strict_mode=True)
        if rows and columns and len(data) != 4 * rows * columns:
            raise ValueError(f"{len(data)} bytes, not {4 * rows * columns} for {rows} x {columns} float32 values")
        if rows and len(data) % (4 * rows):
            raise ValueError(f"{len(data)} bytes cannot be {rows} rows of float32")
        array = np.frombuffer(data, "<f4")
    else:
        array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise ValueError(f"an array of {array.dtype} and shape {array.shape}, not a matrix of numbers")
    if array.ndim == 1:
        given_length = rows if columns is None else columns
        if not given_length or len(array) % given_length or (rows and columns and len(array) != rows * columns):
            raise ValueError(f"{len(array)} values cannot be {'' if rows is None else rows} rows")
        array = array.reshape(-1, len(array) // given_length if columns is None else columns)
    return array.astype(np.float32, copy=False)
