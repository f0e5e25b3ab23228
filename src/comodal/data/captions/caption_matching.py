"""Matches captions to the images of a region store, and to splits.

A caption has all names of its image, in the same order in the whole file. Matching uses the one kind of name that most
captions share with the store. Using the first matching name of each caption could match one image's running index to
another image's id.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from comodal.data.captions.caption_files import Caption
from comodal.data.image_ids import parse_coco_image_id
from comodal.data.sources.splits import SPLITS_HELD_OUT_FIRST, split_by_hash
from comodal.errors import DataError

NUMERIC_NAME_KINDS = (
    0,
    5,
    6,
)  # positions of numeric names, which images of another data set have as well
MIN_MATCHED_FRACTION = 0.1  # matching fewer than this fraction of captions and of images suggests another kind of name
MAX_IDS_SHOWN = 3


class MatchedCaptions(NamedTuple):
    """Captions with the row of their image in a store, and those whose image is not there."""

    pairs: list[tuple[Caption, int]]
    unmatched: list[Caption]

    def count_skipped(self, refused: Counter[str]) -> Counter[str]:
        """The number of skipped captions by reason; `refused` has those of the file."""
        return refused + Counter({"image is not in the store": len(self.unmatched)})

    def format_skipped(self, refused: Counter[str]) -> str:
        """Formats the number of skipped captions by reason, as the end of a message; "" if there are none."""
        return "".join(f"; {count:,} skipped: {reason}" for reason, count in self.count_skipped(refused).items())


def match_captions(captions: Iterable[Caption], store_ids: Sequence[str]) -> MatchedCaptions:
    """Find the image of each caption in a store, by the kind of name that most captions share with it.

    Raises:
        DataError: Almost nothing matches: the names are of another kind.
    """
    all_captions = list(captions)
    rows: dict[str, int] = {}
    for index, name in enumerate(store_ids):
        rows.setdefault(name, index)
    without_folder = Counter(map(_strip_parent_folder, store_ids))
    for index, name in enumerate(store_ids):
        if (
            without_folder[_strip_parent_folder(name)] == 1
        ):  # a store of several folders, captions that name the file alone
            rows.setdefault(_strip_parent_folder(name), index)
    hits = Counter(index for caption in all_captions for index, name in enumerate(caption.image) if name in rows)
    stems = (caption.image[1] for caption in all_captions if len(caption.image) > 1)
    if any(map(parse_coco_image_id, stems)) and any(
        parse_coco_image_id(_strip_parent_folder(name)) for name in store_ids
    ):
        hits = Counter({index: count for index, count in hits.items() if index not in NUMERIC_NAME_KINDS})
    kind = min(hits, key=lambda index: (-hits[index], index in NUMERIC_NAME_KINDS, index), default=1)
    matched = MatchedCaptions([], [])
    for caption in all_captions:
        row = rows.get(caption.image[kind]) if kind < len(caption.image) else None
        if row is None:
            matched.unmatched.append(caption)
        else:
            matched.pairs.append((caption, row))
    images = len({row for _, row in matched.pairs})
    if not matched.pairs or (
        len(matched.pairs) < MIN_MATCHED_FRACTION * len(all_captions) and images < MIN_MATCHED_FRACTION * len(store_ids)
    ):
        requested = [
            " or ".join(filter(None, dict.fromkeys(caption.image))) for caption in matched.unmatched[:MAX_IDS_SHOWN]
        ]
        raise DataError(
            f"{len(matched.pairs)} of {len(all_captions)} captions match an image of the region store ({images} of "
            f"{len(store_ids)} images): the captions name {'; '.join(requested) or 'nothing'}; the store has "
            f"{'; '.join(store_ids[:MAX_IDS_SHOWN]) or 'nothing'}"
        )
    return matched


def _strip_parent_folder(image: str) -> str:
    return image.rpartition("/")[2]


def split_matched_captions(
    pairs: Iterable[tuple[Caption, int]], store_ids: Sequence[str], validation_fraction: float, test_fraction: float
) -> dict[str, list[tuple[Caption, int]]]:
    """The captions of each split; all captions of an image are in one split.

    The split is that of the file. If it gives several for one image, test takes precedence over validation over train.
    If it gives none, the split is chosen by a hash of the id.
    """
    all_pairs = list(pairs)
    splits_of_row: dict[int, set[str | None]] = {}
    for caption, row in all_pairs:
        splits_of_row.setdefault(row, set()).add(caption.split)
    split_of = {
        row: next(
            (split for split in SPLITS_HELD_OUT_FIRST if split in splits),
            split_by_hash(store_ids[row], validation_fraction, test_fraction),
        )
        for row, splits in splits_of_row.items()
    }
    parts: dict[str, list[tuple[Caption, int]]] = {split: [] for split in SPLITS_HELD_OUT_FIRST}
    for caption, row in all_pairs:
        parts[split_of[row]].append((caption, row))
    return parts
