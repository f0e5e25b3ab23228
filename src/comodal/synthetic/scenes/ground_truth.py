"""Ground truth of a world as plain JSON values."""

from dataclasses import asdict
from typing import Any

from comodal.synthetic.scenes.motion import compute_object_box
from comodal.synthetic.scenes.sentences import generate_captions
from comodal.synthetic.scenes.world import World

BOX_STEP_SECONDS = 0.5


def build_ground_truth(world: World, side: int) -> dict[str, Any]:
    """The full ground truth of a world: objects with boxes over time, sound events, background, sentences."""
    times = [BOX_STEP_SECONDS * step for step in range(int(world.seconds / BOX_STEP_SECONDS))]
    objects = []
    for synthetic_object in world.objects:
        record = asdict(synthetic_object)
        notes = record.pop("notes")
        record["events"] = [_round_values(note) for note in notes if 0 <= note["start_seconds"] < world.seconds]
        record["boxes"] = [compute_object_box(synthetic_object, seconds, side) for seconds in times]
        objects.append(_round_values(record))
    return {
        "seed": world.seed,
        "index": world.index,
        "seconds": world.seconds,
        "width": side,
        "height": side,
        "label": world.sounding_objects[0].kind,
        "sounding": [synthetic_object.kind for synthetic_object in world.sounding_objects],
        "box_seconds": times,
        "objects": objects,
        "background": _round_values(asdict(world.background)),
        "captions": generate_captions(world),
    }


def _round_values(record: dict[str, Any]) -> dict[str, Any]:
    """Numbers rounded to four decimals, so that the file is short and the same on every machine."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in record.items()}
