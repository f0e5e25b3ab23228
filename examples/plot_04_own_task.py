"""
Your own task on top of a network
=================================

A network of comodal is a ``torch.nn.Module``. Your own package can put its own head on it and train both in its
own loop. The task here is a regression that comodal does not have: how many beeps are in a second of audio?
"""

# %%
# Synthetic audio
# ---------------
import numpy as np
import torch
from torch import nn

import comodal
from comodal.models.l3net.l3net import make_small_l3net_config

torch.manual_seed(0)
config = make_small_l3net_config(width=4)
RATE = config.sample_rate
rng = np.random.default_rng(0)


def draw_audio(beeps: int) -> np.ndarray:
    """A second of noise with so many beeps of 50 ms, at random times that do not overlap."""
    audio = rng.normal(0, 0.02, RATE)
    beep = 0.5 * np.sin(2 * np.pi * 1500 * np.arange(RATE // 20) / RATE)
    for slot in rng.choice(10, beeps, replace=False):
        start = slot * RATE // 10 + int(rng.integers(RATE // 20))
        audio[start : start + len(beep)] += beep
    return audio.astype(np.float32)


def draw_batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio, and the count of its beeps."""
    counts = rng.integers(0, 7, size)
    return torch.from_numpy(np.stack([draw_audio(int(count)) for count in counts])), torch.from_numpy(counts).float()


# %%
# A head on the feature map
# -------------------------
# ``compute_audio_map`` returns the last feature map, (batch, channels, frequencies, time). Pooling over frequencies
# alone keeps the time, which the task needs. To start from pretrained weights, take
# ``comodal.L3Net.from_pretrained("runs/l3net")``.
class BeepCounter(nn.Module):
    """Counts events: one value per position in time, and their sum."""

    def __init__(self, network: comodal.L3Net) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Linear(8 * network.config.width, 1)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        features = self.network.compute_audio_map(audio).amax(2).transpose(1, 2)
        return self.head(features).sum((1, 2))


# %%
# Training
# --------
model = BeepCounter(comodal.L3Net(config))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
losses = []
for _ in range(80):
    audio, counts = draw_batch(16)
    loss = nn.functional.smooth_l1_loss(model(audio), counts)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

# %%
# Evaluation on new audio
# -----------------------
import matplotlib.pyplot as plt

model.eval()
with torch.inference_mode():
    audio, counts = draw_batch(200)
    predicted = model(audio)
error = float((predicted - counts).abs().mean())
baseline = float((counts - counts.mean()).abs().mean())
print(f"mean absolute error {error:.2f}, of the mean count {baseline:.2f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.plot(losses)
left.set(xlabel="step", ylabel="loss")
right.scatter(counts + 0.1 * torch.randn(len(counts)), predicted, s=8)
right.plot([0, 6], [0, 6], color="gray", linestyle=":")
right.set(xlabel="beeps", ylabel="predicted")
plt.show()
