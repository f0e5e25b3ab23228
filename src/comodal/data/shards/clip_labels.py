"""The labels of clips, from their records."""

from comodal.data.shards.shard_reader import ShardReader
from comodal.errors import DataError


def read_clip_labels(shards: ShardReader) -> list[tuple[str, ...]]:
    """The labels of each clip: none, one or several."""
    labels = []
    for clip in range(len(shards)):
        label = shards.read_record(clip).get("label", ())
        labels.append((label,) if isinstance(label, str) else tuple(map(str, label)))
    return labels


def read_clip_classes(shards: ShardReader) -> list[str]:
    """The class of each clip, of shards in which every clip has one label.

    Raises:
        DataError: A clip has no label, or several.
    """
    labels = read_clip_labels(shards)
    for clip, found in enumerate(labels):
        if len(found) != 1:
            raise DataError(
                f"{shards.folder}: clip {shards.get_key(clip)} has {len(found)} labels, and a class is one label"
            )
    return [label for (label,) in labels]
