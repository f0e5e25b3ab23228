"""
Co-attention of a ViLBERT
=========================

In ViLBERT each token of a text attends to the regions of an image, and each region to the tokens. This example trains
a tiny ViLBERT on a synthetic task that requires the image: fill in the masked color of "top left [MASK]".
Then it shows what the masked token attends to.
"""

# %%
# A tiny ViLBERT
# --------------
# Two layers of text, one of vision, one co-attention layer. A region is a feature vector of length 8; region 0 is the
# whole image.
import torch

from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig, ViLBERTConfig

torch.manual_seed(0)
COLORS = ["red", "green", "blue", "orange", "purple", "gray"]
CELLS = ["top left", "top right", "bottom left", "bottom right"]
VOCABULARY = ["[CLS]", "[MASK]", "[SEP]", *CELLS, *COLORS]
CLS, MASK, SEP, FIRST_CELL, FIRST_COLOR = 0, 1, 2, 3, 7
config = ViLBERTConfig(
    vocabulary=len(VOCABULARY),
    positions=8,
    text=StreamConfig(32, layers=2, heads=2, intermediate=64, dropout=0.0, attention_dropout=0.0),
    vision=StreamConfig(32, layers=1, heads=2, intermediate=64, dropout=0.0, attention_dropout=0.0),
    joint_dim=32,
    joint_heads=2,
    co_attention_layers=((0, 1),),
    region_feature_dim=8,
    region_targets=2,
    initializer_range=0.1,
)
model = ViLBERT(config)

# %%
# Synthetic images
# ----------------
# An image has the four cells of a 2 x 2 grid as regions, each of another color. The feature of a cell is the one-hot
# vector of its color with noise; the whole image has the mean. A location is left, top, right, bottom as fractions,
# and the area.
BOXES = torch.tensor([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]])
LOCATIONS = torch.cat([BOXES, torch.tensor([[1.0], [0.25], [0.25], [0.25], [0.25]])], 1)


def draw_batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, features of the regions, the colors of the cells, and the cell that the text names."""
    colors = torch.stack([torch.randperm(len(COLORS))[:4] for _ in range(size)])
    features = torch.nn.functional.one_hot(colors, config.region_feature_dim) + 0.1 * torch.randn(size, 4, 8)
    cell = torch.randint(4, (size,))
    tokens = torch.tensor([CLS, FIRST_CELL, MASK, SEP]).repeat(size, 1)
    tokens[:, 1] += cell
    return tokens, torch.cat([features.mean(1, keepdim=True), features], 1), colors, cell


# %%
# Training on the masked token
# ----------------------------
# ``compute_token_logits`` returns the score of every token of the vocabulary.
def predict(tokens: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """The scores of the masked token."""
    locations = LOCATIONS.expand(len(tokens), -1, -1)
    output = model(tokens, torch.zeros_like(tokens), None, regions, locations, None)
    return model.compute_token_logits(output.token_states[:, 2])


optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(200):
    tokens, regions, colors, cell = draw_batch(64)
    target = colors.gather(1, cell[:, None])[:, 0] + FIRST_COLOR
    loss = torch.nn.functional.cross_entropy(predict(tokens, regions), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.eval()
with torch.inference_mode():
    tokens, regions, colors, cell = draw_batch(500)
    found = predict(tokens, regions).argmax(1) - FIRST_COLOR
accuracy = float((found == colors.gather(1, cell[:, None])[:, 0]).float().mean())
print(f"accuracy on new images {accuracy:.2f}, chance level {1 / len(COLORS):.2f}")

# %%
# What the masked token attends to
# --------------------------------
# ``record_attention`` collects the attention weights of every layer, as (batch, heads, queries, keys).
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from comodal.models.vilbert.transformer import record_attention

with torch.inference_mode(), record_attention(model) as maps:
    tokens, regions, colors, cell = draw_batch(4)
    found = predict(tokens, regions).argmax(1)
attention = maps["co_layers.0.text.attention"].mean(1)[:, 2]  # of the masked token to the five regions

figure, panels = plt.subplots(1, 4, figsize=(10, 3), layout="constrained")
for image, axes in enumerate(panels):
    for box, color, weight in zip(
        BOXES[1:].tolist(), colors[image].tolist(), attention[image, 1:].tolist(), strict=True
    ):
        left, top, right, bottom = box
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, color=COLORS[color]))
        axes.text((left + right) / 2, (top + bottom) / 2, f"{weight:.2f}", ha="center", va="center", color="w", size=15)
    axes.set_title(f"{CELLS[int(cell[image])]} [MASK]: {VOCABULARY[int(found[image])]}")
    axes.set(aspect="equal", xlim=(0, 1), ylim=(1, 0))
    axes.axis("off")
plt.show()
