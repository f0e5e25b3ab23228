"""Matches captions to the images of a region store, and to splits.

A caption has all names of its image, in the same order in the whole file. Matching uses the one kind of name that most
captions share with the store. Using the first matching name of each caption could match one image's running number to
another image's id.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from comodal.data.captions.caption_files import Caption
from comodal.data.image_ids import parse_coco_image_id
from comodal.data.sources.splits import SPLITS_HELD_OUT_FIRST, split_by_hash
from comodal.errors import DataError

NUMBER_NAME_KINDS = (
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

    def not_taken(self, refused: Counter[str]) -> str:
        """How many captions are left out, by reason, as the end of a message; "" where none are."""
        reasons = refused + Counter({"image is not in the store": len(self.unmatched)})
        return "".join(f"; {count:,} not taken: {reason}" for reason, count in reasons.items())


def match_captions(captions: Iterable[Caption], store_ids: Sequence[str]) -> MatchedCaptions:
    """Find the image of each caption in a store, by the kind of name that most captions share with it.

    Raises:
        DataError: Almost nothing matches: the names are of another kind.
    """
    every = list(captions)
    rows: dict[str, int] = {}
    for place, name in enumerate(store_ids):
        rows.setdefault(name, place)
    without_folder = Counter(map(_strip_parent_folder, store_ids))
    for place, name in enumerate(store_ids):
        if (
            without_folder[_strip_parent_folder(name)] == 1
        ):  # a store of several folders, captions that name the file alone
            rows.setdefault(_strip_parent_folder(name), place)
    hits = Counter(place for caption in every for place, name in enumerate(caption.image) if name in rows)
    stems = (caption.image[1] for caption in every if len(caption.image) > 1)
    if any(map(parse_coco_image_id, stems)) and any(
        parse_coco_image_id(_strip_parent_folder(name)) for name in store_ids
    ):
        hits = Counter({place: count for place, count in hits.items() if place not in NUMBER_NAME_KINDS})
    kind = min(hits, key=lambda place: (-hits[place], place in NUMBER_NAME_KINDS, place), default=1)
    found = MatchedCaptions([], [])
    for caption in every:
        row = rows.get(caption.image[kind]) if kind < len(caption.image) else None
        if row is None:
            found.unmatched.append(caption)
        else:
            found.pairs.append((caption, row))
    images = len({row for _, row in found.pairs})
    if not found.pairs or (
        len(found.pairs) < MIN_MATCHED_FRACTION * len(every) and images < MIN_MATCHED_FRACTION * len(store_ids)
    ):
        asked = [" or ".join(filter(None, dict.fromkeys(caption.image))) for caption in found.unmatched[:MAX_IDS_SHOWN]]
        raise DataError(
            f"{len(found.pairs)} of {len(every)} captions fit an image of the region store ({images} of "
            f"{len(store_ids)} images): the captions ask for {'; '.join(asked) or 'nothing'}; the store has "
            f"{'; '.join(store_ids[:MAX_IDS_SHOWN]) or 'nothing'}"
        )
    return found


def _strip_parent_folder(image: str) -> str:
    return image.rpartition("/")[2]


def split_matched_captions(
    pairs: Iterable[tuple[Caption, int]], store_ids: Sequence[str], validation: float, test: float
) -> dict[str, list[tuple[Caption, int]]]:
    """The captions of each split; all captions of an image are in one split.

    The split is that of the file. If it gives several for one image, test takes precedence over validation over train.
    If it gives none, the split is chosen by a hash of the id.
    """
    every = list(pairs)
    own: dict[int, set[str | None]] = {}
    for caption, row in every:
        own.setdefault(row, set()).add(caption.split)
    split_of = {
        row: next(
            (split for split in SPLITS_HELD_OUT_FIRST if split in said), split_by_hash(store_ids[row], validation, test)
        )
        for row, said in own.items()
    }
    parts: dict[str, list[tuple[Caption, int]]] = {split: [] for split in SPLITS_HELD_OUT_FIRST}
    for caption, row in every:
        parts[split_of[row]].append((caption, row))
    return parts
