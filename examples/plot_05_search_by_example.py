"""
Search by example
=================

Embeddings turn a folder of images into something that can be searched: the images most similar to a query are its
nearest neighbors. The images are synthetic, and the network is a small L3-Net with random weights, which reacts
to simple shapes and colors. A trained one (``comodal.load("runs/l3net")``) finds images of the same kind. To search
by text, train a ViLBERT and use ``comodal.load("runs/vilbert").open_index("photos/")``.
"""

# %%
# Images of ten classes
# ---------------------
import tempfile
from pathlib import Path

import comodal

world = Path(tempfile.mkdtemp()) / "world"
comodal.synthesize(world, videos=0, audio=0, scenes=0, images=120, side=64, workers=1)
gallery = sorted((world / "images" / "train").glob("*/*.jpg"))
queries = sorted((world / "images" / "test").glob("*/*.jpg"))[::27][:4]
print(f"{len(gallery)} images, {len(queries)} queries")

# %%
# The index
# ---------
# ``embed_image`` takes paths, PIL images, arrays or tensors, one or a list.
import torch
from sklearn.neighbors import NearestNeighbors

from comodal.models.l3net.l3net import make_small_l3net_config

torch.manual_seed(0)
pipeline = comodal.AudioVisualPipeline.from_model(comodal.L3Net(make_small_l3net_config(width=8)))
index = NearestNeighbors(n_neighbors=5, metric="cosine").fit(pipeline.embed_image(gallery))

# %%
# The nearest neighbors of each query
# -----------------------------------
import matplotlib.pyplot as plt
from PIL import Image

distances, neighbors = index.kneighbors(pipeline.embed_image(queries))
figure, panels = plt.subplots(len(queries), 6, figsize=(9, 6.5), layout="constrained")
for row, query, found, far in zip(panels, queries, neighbors, distances, strict=True):
    titles = [f"query: {query.parent.name}", *(f"{1 - distance:.3f}" for distance in far)]
    for axes, path, title in zip(row, [query, *(gallery[i] for i in found)], titles, strict=True):
        axes.imshow(Image.open(path))
        axes.set_title(title, fontsize=9)
        axes.axis("off")
plt.show()
