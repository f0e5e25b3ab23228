"""Renders the images of a world: a textured, cluttered background and the objects in front of it, antialiased.

The material is painted over the polygons: grain on wood, a bright band on metal, a highlight on plastic. Glass is
translucent.
"""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from comodal.synthetic.scenes.motion import Pose, compute_object_outline, compute_pose
from comodal.synthetic.scenes.world import OBJECT_COLORS, RandomStream, SyntheticObject, World

Pixels = UInt8[np.ndarray, "height width 3"]
SUPERSAMPLING = 2


class Painter:
    """Draws the frames of one world; static parts are drawn once."""

    def __init__(self, world: World, side: int) -> None:
        self.world, self.side = world, side
        self.background = paint_background(world, side)
        self.cached_patches: dict[int, tuple[Pose, Image.Image, tuple[int, int]]] = {}

    def paint_frame(self, seconds: float) -> Pixels:
        image = self.background.copy()
        for index, synthetic_object in enumerate(self.world.objects):
            pose = compute_pose(synthetic_object, seconds)
            if index not in self.cached_patches or self.cached_patches[index][0] != pose:
                self.cached_patches[index] = (pose, *paint_object(synthetic_object, pose, self.side))
            _, patch, corner = self.cached_patches[index]
            image.paste(patch, corner, patch)
        return np.asarray(image)


def paint_object(synthetic_object: SyntheticObject, pose: Pose, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """An object as an RGBA patch, and the position of its top left corner in the image."""
    polygons = compute_object_outline(synthetic_object, pose, side)
    points = np.concatenate([polygon.points for polygon in polygons])
    corner = np.floor(points.min(axis=0)).astype(int) - 1
    size = np.ceil(points.max(axis=0)).astype(int) + 1 - corner
    paints = _choose_paints(synthetic_object)
    large = Image.new("RGBA", tuple((size * SUPERSAMPLING).tolist()), (*paints["body"], 0))
    draw = ImageDraw.Draw(large)
    for polygon in polygons:
        inside = (polygon.points - corner) * SUPERSAMPLING - 0.5
        draw.polygon([tuple(point) for point in inside.tolist()], fill=(*paints[polygon.paint], 255))
    patch = np.asarray(large.reduce(SUPERSAMPLING))
    x, y = np.meshgrid(np.arange(size[0]) / size[0], np.arange(size[1]) / size[1])
    shade, opacity = _render_material(synthetic_object.material, x, y)
    rgb = np.clip(patch[..., :3] * shade[..., None], 0, 255)
    painted = np.concatenate([rgb, patch[..., 3:] * opacity], axis=2).astype(np.uint8)
    return Image.fromarray(painted), (int(corner[0]), int(corner[1]))


def _choose_paints(synthetic_object: SyntheticObject) -> dict[str, tuple[int, int, int]]:
    body = np.array(OBJECT_COLORS[synthetic_object.color], dtype=float)
    ink = np.array((25, 25, 30)) if body.mean() > 70 else np.array((150, 150, 145))
    light = body * 0.35 + 165 if body.mean() < 200 else body * 0.55  # for white, the lighter paint is gray
    paints = {"body": body, "dark": body * 0.6, "light": light, "ink": ink}
    return {name: (int(c[0]), int(c[1]), int(c[2])) for name, c in paints.items()}


def _render_material(
    material: str, x: Float[np.ndarray, "height width"], y: Float[np.ndarray, "height width"]
) -> tuple[Float[np.ndarray, "height width"], float]:
    """Brightness over the patch, and opacity."""
    if material == "wood":
        return 0.92 + 0.1 * np.sign(np.sin(40 * y + 4 * np.sin(5 * x))), 1.0
    if material == "metal":
        return 0.75 + 0.6 * np.exp(-(((x + y - 0.8) / 0.18) ** 2)), 1.0
    if material == "glass":
        return 1.05 + 0.25 * np.exp(-(((x - y) / 0.1) ** 2)), 0.85
    return 0.95 + 0.5 * np.exp(-((x - 0.35) ** 2 + (y - 0.3) ** 2) / 0.02), 1.0


def paint_background(world: World, side: int) -> Image.Image:
    """Two colors in a texture, scattered scraps, a light gradient and grain."""
    rng = world.make_generator(RandomStream.IMAGE)
    scene = world.background
    x, y = np.meshgrid(np.arange(side) / side, np.arange(side) / side)
    angle, scale = rng.uniform(0, np.pi), rng.uniform(6, 30)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    mix = {
        "plain": along / 2,
        "stripes": 0.5 + 0.5 * np.sin(scale * along),
        "checks": 0.5 + 0.5 * np.sign(np.sin(scale * along) * np.sin(scale * across)),
        "dots": 1.0 * (np.sin(scale * along) * np.sin(scale * across) > 0.6),
        "waves": 0.5 + 0.5 * np.sin(scale * (along + 0.08 * np.sin(9 * across))),
    }[scene.texture]
    contrast = rng.uniform(0.05, 0.25)
    first, second = (np.array(OBJECT_COLORS[color], dtype=float) for color in scene.colors)
    pixels = first + (second - first) * (contrast * mix)[..., None]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(scene.clutter):
        center, size = rng.uniform(0, side, 2), rng.uniform(0.02, 0.12) * side
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
        scrap = center + size * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        color = OBJECT_COLORS[str(rng.choice(list(OBJECT_COLORS)))]
        draw.polygon([tuple(point) for point in scrap.tolist()], fill=color)
    light = scene.light * (1 + rng.uniform(-0.3, 0.3) * (x - 0.5) + rng.uniform(-0.3, 0.3) * (y - 0.5))
    grain = rng.normal(0, 4, (side, side, 1))
    return Image.fromarray(np.clip(np.asarray(image) * light[..., None] + grain, 0, 255).astype(np.uint8))


def render_frame(world: World, seconds: float, side: int) -> Pixels:
    """One moment of a world."""
    return Painter(world, side).paint_frame(seconds)
