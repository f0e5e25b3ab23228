"""
Sound source localization
=========================

L3-Net learns whether an image and a second of audio correspond. Its image features keep their positions, so that the
same decision can be made for each position of the image. This example trains a small L3-Net on synthetic pairs, and
shows where in the image it localizes the sound.
"""

# %%
# Synthetic pairs
# ---------------
# Each image has two squares of different colors, each color has a tone. The audio is the tone of one of the two, or of
# a color that is not in the image.
import numpy as np
import torch
from torch.nn import functional as F

import comodal
from comodal.models.l3net.l3net import make_small_l3net_config

torch.manual_seed(0)
rng = np.random.default_rng(0)
COLORS = np.array([(230, 60, 50), (70, 200, 80), (70, 110, 240), (240, 220, 70)], np.uint8)
TONES_HZ = np.array([300.0, 700.0, 1700.0, 4000.0])
SIDE, SQUARE = 64, 20
config = make_small_l3net_config(width=8, image_size=SIDE)
TIME = np.arange(config.sample_rate) / config.sample_rate


def draw_pair(is_match: bool) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """An image, a second of audio, and the center of the square that makes the sound."""
    colors = rng.permutation(4)
    image = rng.integers(0, 60, (SIDE, SIDE, 3)).astype(np.uint8)
    corners = [
        (int(rng.integers(SIDE - SQUARE)), int(rng.integers(SIDE // 2 - SQUARE)) + half) for half in (0, SIDE // 2)
    ]
    for color, (top, left) in zip(colors, corners, strict=False):
        image[top : top + SQUARE, left : left + SQUARE] = COLORS[color]
    sounding = int(rng.integers(2)) if is_match else 2
    audio = 0.3 * np.sin(2 * np.pi * TONES_HZ[colors[sounding]] * TIME + rng.uniform(0, 6))
    top, left = corners[min(sounding, 1)]
    return image, audio.astype(np.float32), (left + SQUARE // 2, top + SQUARE // 2)


def draw_batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, audio, and whether they correspond: half of them do."""
    is_match = np.arange(size) % 2 == 0
    images, audio, _ = zip(*(draw_pair(bool(match)) for match in is_match), strict=True)
    return (
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack(audio)),
        torch.from_numpy(is_match),
    )


# %%
# Training on audio-visual correspondence
# ---------------------------------------
# Class 1 of the logits is a match.
model = comodal.L3Net(config)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(60):
    images, audio, is_match = draw_batch(32)
    loss = F.cross_entropy(model(images, audio).logits, is_match.long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.eval()
with torch.inference_mode():
    images, audio, is_match = draw_batch(200)
    accuracy = float(((model(images, audio).logits.argmax(1) == 1) == is_match).float().mean())
print(f"accuracy on new pairs {accuracy:.2f}, chance level 0.50")

# %%
# The decision at each position
# -----------------------------
# ``match`` takes images and audio in memory, or paths of images, audio and videos. A window has the position that
# fits the audio best, as a fraction of the width and height, and the decision at every position.
import matplotlib.pyplot as plt

pipeline = comodal.AudioVisualPipeline.from_model(model)
figure, panels = plt.subplots(2, 4, figsize=(9, 4.8), layout="constrained")
for above, below in panels.T:
    image, tone, center = draw_pair(is_match=True)
    window = pipeline.match(image, tone, sample_rate=config.sample_rate).windows[0]
    above.imshow(image)
    above.plot(*center, "w+", markersize=12)
    above.set_title(f"probability {window.probability:.2f}")
    below.imshow(window.position_margins, extent=(0, SIDE, SIDE, 0), cmap="magma")
    below.plot(window.x * SIDE, window.y * SIDE, "co")
    for axes in (above, below):
        axes.axis("off")
figure.suptitle("above: + marks the square that sounds; below: the decision at each position")
plt.show()
