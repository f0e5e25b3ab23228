"""A made-up world keeps its promises: what is seen causes what is heard, and the truth about it is true."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from comodal.synthetic.scenes.audio_synthesis import render_world_audio
from comodal.synthetic.scenes.motion import compute_object_box, compute_object_outline, compute_pose
from comodal.synthetic.scenes.rendering import Painter, paint_background, render_frame
from comodal.synthetic.scenes.sentences import describe_relation, generate_captions, generate_scene_captions
from comodal.synthetic.scenes.shapes import SILENT_SHAPES, SOUNDING_SHAPES
from comodal.synthetic.scenes.world import (
    LARGE_SIZES,
    SILENT_KINDS,
    SMALL_SIZES,
    SOUNDING_KINDS,
    Note,
    Purpose,
    SyntheticObject,
    World,
    make_scene,
    make_world,
)

SIDE, RATE = 128, 48_000


def world_of(kind: str, index: int = 3, seconds: float = 3.0) -> World:
    return make_world(0, Purpose.IMAGE, index, seconds=seconds, kind=kind)


def quiet(world: World) -> World:
    """The same world without noise, echo or tilt."""
    return replace(world, background=replace(world.background, noise_level=0.0, echo_level=0.0, tilt_decibels=0.0))


def silent_thing(kind: str) -> SyntheticObject:
    worlds = (make_world(0, Purpose.VIDEO, index, seconds=2.0) for index in range(100))
    return next(thing for world in worlds for thing in world.objects if thing.kind == kind)


@pytest.mark.parametrize("kind", [*SOUNDING_KINDS, *SILENT_KINDS])
def test_the_box_encloses_what_is_painted_and_no_more(kind: str):
    """The pixels that differ from the bare background, against the box: outside nothing, inside up to its edges."""
    world = world_of("bell")
    thing = silent_thing(kind) if kind in SILENT_KINDS else world_of(kind).sounding_objects[0]
    thing = replace(thing, material="plastic", color="white", x=0.5, y=0.5)
    alone, empty = replace(world, objects=(thing,)), replace(world, objects=())
    for seconds in (0.0, 0.7, 1.3):
        seen = render_frame(alone, seconds, SIDE) != render_frame(empty, seconds, SIDE)
        rows, columns = np.nonzero(seen.any(2))
        left, top, right, bottom = compute_object_box(thing, seconds, SIDE)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert found[0] >= left and found[1] >= top and found[2] <= right and found[3] <= bottom
        assert np.abs(np.array(found) - (left, top, right, bottom)).max() <= 3


def test_boxes_stay_inside_the_picture():
    for index in range(50):
        world = make_world(1, Purpose.VIDEO, index, seconds=2.0)
        for thing in world.objects:
            left, top, right, bottom = compute_object_box(thing, 1.0, SIDE)
            assert 0 <= left < right <= SIDE and 0 <= top < bottom <= SIDE


def test_every_kind_has_a_shape_and_only_those_that_sound_move_in_themselves():
    assert set(SOUNDING_SHAPES) == set(SOUNDING_KINDS) and set(SILENT_SHAPES) == set(SILENT_KINDS)


@pytest.mark.parametrize("kind", SOUNDING_KINDS)
def test_any_second_holds_evidence_of_its_kind(kind: str):
    """L3-Net hears one second, wherever it starts."""
    for index in range(20):
        notes = make_world(0, Purpose.AUDIO, index, seconds=4.0, kind=kind).sounding_objects[0].notes
        starts = np.array([note.start_seconds for note in notes])
        ends = np.array([note.start_seconds + note.seconds for note in notes])
        for second in np.arange(0, 3.01, 0.1):
            heard = np.minimum(ends, second + 1) - np.maximum(starts, second)
            assert (heard > 0.02).sum() >= 2 or heard.max() > 0.3


def test_a_ball_is_heard_when_it_is_on_the_ground():
    ball = world_of("ball").sounding_objects[0]
    ball = replace(ball, motion="still")
    hits = [note.start_seconds for note in ball.notes if 0 < note.start_seconds < 2.5]
    for hit in hits:
        assert compute_pose(ball, hit).y == pytest.approx(ball.y, abs=1e-9)
    for before, after in pairwise(hits):
        assert compute_pose(ball, (before + after) / 2).y < ball.y  # up is less


def test_a_struck_bell_is_loudest_just_after_the_stroke_and_a_horn_just_before_its_end():
    """Energy in the first and in the last third of each note, in the rendered sound."""
    for kind, rises in (("bell", False), ("horn", True)):
        world = quiet(world_of(kind))
        sound = render_world_audio(world, RATE)
        for note in world.sounding_objects[0].notes:
            if note.start_seconds < 0 or note.start_seconds + note.seconds > world.seconds:
                continue
            first = round(note.start_seconds * RATE)
            third = round(note.seconds * RATE / 3)
            begins, ends = (np.square(sound[s : s + third]).sum() for s in (first, first + 2 * third))
            assert (ends > 4 * begins) if rises else (begins > 4 * ends)


@pytest.mark.parametrize(("kind", "factor"), [("bird", 2.0), ("frog", 0.5)])
def test_a_bird_rises_by_an_octave_and_a_frog_falls_by_one(kind: str, factor: float):
    """The lowest partial, at 0.15 and 0.85 of one long note: 0.7 of an octave apart."""
    note = Note(0.0, 1.0, *((0.71, 1.41) if kind == "bird" else (1.41, 0.71)))
    for own in world_of(kind).sounding_objects[0].notes:
        assert own.end_pitch / own.pitch == pytest.approx(factor, rel=0.02)
    world = quiet(world_of(kind, seconds=1.0))
    thing = replace(world.sounding_objects[0], notes=(note,), material="glass")
    sound = render_world_audio(replace(world, objects=(thing,)), RATE)
    spectra = [np.abs(np.fft.rfft(sound[start : start + 4800] * np.hanning(4800))) for start in (4800, 38_400)]
    lowest = [spectrum[: round(thing.pitch_hertz * 1.9 / 10)].argmax() * 10.0 for spectrum in spectra]
    assert lowest[1] / lowest[0] == pytest.approx(factor**0.7, rel=0.1)


def test_bigger_is_lower():
    """An octave between the sizes' ends, plus chance that has nothing to do with size: a slope of -1 octave."""
    things = [make_world(0, Purpose.VIDEO, index, seconds=1.0).sounding_objects[0] for index in range(600)]
    slope = np.polyfit([t.size for t in things], [np.log2(t.pitch_hertz) for t in things], 1)[0] * (
        LARGE_SIZES - SMALL_SIZES
    )
    assert slope == pytest.approx(-1, abs=0.15)


def test_colour_material_and_kind_are_independent():
    """Cramer's V of two independent variables in n draws is about sqrt(degrees of freedom / n / smaller side)."""
    things = [make_world(0, Purpose.VIDEO, index, seconds=1.0).sounding_objects[0] for index in range(2000)]
    for names in ([t.color for t in things], [t.material for t in things]):
        values, other = np.unique(names, return_inverse=True)
        table = np.zeros((len(SOUNDING_KINDS), len(values)))
        np.add.at(table, ([SOUNDING_KINDS.index(t.kind) for t in things], other), 1)
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        freedom = (len(SOUNDING_KINDS) - 1) * (len(values) - 1)
        # The statistic has mean `freedom` and variance 2 * freedom when nothing depends on anything.
        assert ((table - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)


def test_worlds_of_different_purpose_seed_or_index_differ_and_equal_ones_are_equal():
    world = make_world(0, Purpose.VIDEO, 0, seconds=2.0)
    assert world == make_world(0, Purpose.VIDEO, 0, seconds=2.0)
    others = [(1, Purpose.VIDEO, 0), (0, Purpose.AUDIO, 0), (0, Purpose.VIDEO, 1)]
    assert all(world.objects != make_world(*other, seconds=2.0).objects for other in others)


def test_sound_is_within_range_and_never_silent():
    for index in range(10):
        sound = render_world_audio(make_world(0, Purpose.VIDEO, index, seconds=2.0), RATE)
        assert sound.shape == (2 * RATE,) and 0.1 < np.abs(sound).max() <= 1.0


def test_painting_a_frame_does_not_depend_on_the_frames_before():
    world = world_of("fan")
    painter = Painter(world, SIDE)
    in_order = [painter.paint_frame(seconds) for seconds in (0.0, 0.1, 0.2)]
    assert np.array_equal(in_order[2], render_frame(world, 0.2, SIDE))


def test_an_upright_square_in_the_middle_lies_where_geometry_puts_it():
    """A crate reaches 0.85 of its size: at size 0.2 of 128 pixels that is 21.76 pixels around the centre (64, 64)."""
    crate = replace(silent_thing("crate"), x=0.5, y=0.5, size=0.2, angle=0.0, motion="still")
    points = compute_object_outline(crate, compute_pose(crate, 0.0), SIDE)[0].points
    assert points.min(0) == pytest.approx((42.24, 42.24)) and points.max(0) == pytest.approx((85.76, 85.76))
    assert compute_object_box(crate, 0.0, SIDE) == (41, 41, 87, 87)  # and half a pixel for the soft edge


def test_relations_between_places():
    thing = world_of("bell").sounding_objects[0]
    left, right, above = (replace(thing, x=x, y=y) for x, y in ((0.2, 0.5), (0.8, 0.6), (0.25, 0.1)))
    assert describe_relation(left, right) == "left of" and describe_relation(right, left) == "right of"
    assert describe_relation(above, left) == "above" and describe_relation(left, above) == "below"


def test_captions_name_what_is_there():
    for index in range(30):
        world = make_world(0, Purpose.VIDEO, index, seconds=2.0)
        sentences = generate_captions(world)
        kinds = {thing.kind for thing in world.objects}
        assert all(kind in sentences[0] for kind in kinds)
        absent = set(SOUNDING_KINDS + SILENT_KINDS) - kinds
        words = {word.strip(".,") for sentence in sentences for word in sentence.split()}
        assert not absent & words
        assert len(sentences) >= 2


def test_the_boxes_of_a_scene_hold_what_is_painted_and_nothing_else():
    """Beside the boxes the picture is the background, pixel for pixel."""
    for index in range(5):
        world = make_scene(3, index)
        with_things = np.asarray(render_frame(world, 0.0, 128), dtype=int)
        outside = np.ones((128, 128), bool)
        for thing in world.objects:
            left, top, right, bottom = compute_object_box(thing, 0.0, 128)
            assert np.any(with_things[top:bottom, left:right] != paint_array(world)[top:bottom, left:right])
            outside[top:bottom, left:right] = False
        assert np.array_equal(with_things[outside], paint_array(world)[outside])


def paint_array(world):
    return np.asarray(paint_background(world, 128), dtype=int)


def test_captions_of_a_scene_are_true():
    """What is said to be left of something has its centre left of it, and every object is listed with its colour."""
    for index in range(200):
        world = make_scene(0, index)
        by_kind = {thing.kind: thing for thing in world.objects}
        assert len(by_kind) == len(world.objects)
        listed, places, counted = generate_scene_captions(world)
        assert all(f"{thing.color} {thing.material} {kind}" in listed for kind, thing in by_kind.items())
        assert all(kind in counted for kind in by_kind)
        for part in places.lower().rstrip(".").split(" and "):
            first, second = (part.split(" is ")[0].split()[-1], part.split()[-1])
            one, other = by_kind[first], by_kind[second]
            far = max(abs(one.x - other.x), abs(one.y - other.y))
            shift = {
                "left": other.x - one.x,
                "right": one.x - other.x,
                "above": other.y - one.y,
                "below": one.y - other.y,
            }
            assert shift[next(word for word in shift if word in part.split())] == far
