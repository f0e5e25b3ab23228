"""Fits a codebook: principal axes of a sample of region features, then k-means at each node of a tree.

Features after a ReLU differ in length and are far from centered. Before clustering they are scaled to length 1,
centered, projected to their principal axes, partly whitened, and scaled to length 1 again. The clustering is
scikit-learn's with k-means++ initialization. Memory: the projected sample (1 GB for a million regions of 256
dimensions), and a copy of it while the first level is fitted.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin_min
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from comodal.models.codebook.codebook import Codebook, CodebookConfig, project_features

MAX_FLAT_TOKENS = 2000  # tokens; above it a tree, unless depth 1 is requested
DEFAULT_BRANCHING = 12  # VideoBERT's
MIN_MEMBERS_PER_CHILD = 40  # a node is split if its sample has this many per child
KMEANS_BATCH_SIZE, MAX_KMEANS_PASSES = (
    16_384,
    20,
)  # of mini-batch k-means: batch size, maximum number of epochs
KMEANS_RESTARTS = 3
MAX_LLOYD_DISTANCES = 20_000_000  # distances per iteration: below, full batches; above, mini-batches
MIN_VARIANCE = 1e-6  # std of an axis, for features of length 1: below it is rounding error

FeatureBlocks: TypeAlias = Callable[[], Iterable[Tensor]]


class FittedCodebook(NamedTuple):
    """A codebook, and the mean squared distance to the chosen node at each level."""

    codebook: Codebook
    inertia: tuple[float, ...]


class ClusterTree(NamedTuple):
    """Nodes level by level: centers, children of each, number of nodes on the first level, inertia by level."""

    centers: Float32[np.ndarray, "nodes projection"]
    children: list[list[int]]
    roots: int
    inertia: tuple[float, ...]


def choose_tree_shape(tokens: int, depth: int | None = None) -> tuple[int, int]:
    """Branching factor and depth for a number of tokens.

    Without a depth: flat k-means up to 2,000 tokens, and above it the tree whose branching factor is nearest to 12.
    """
    if tokens < 2 or (depth is not None and depth < 1):
        raise ValueError(f"tokens ({tokens}) must be at least 2 and depth ({depth}) at least 1")
    if depth is None and tokens <= MAX_FLAT_TOKENS:
        return tokens, 1
    deepest = int(math.log2(tokens))
    depths = range(2, deepest + 1) if depth is None else [depth]
    shapes = [(root, levels) for levels in depths if (root := round(tokens ** (1 / levels))) ** levels == tokens]
    if shapes:
        return min(shapes, key=lambda shape: abs(math.log(shape[0] / DEFAULT_BRANCHING)))
    levels = depth or max(2, round(math.log(tokens, DEFAULT_BRANCHING)))
    lower_branching = max(2, int(tokens ** (1 / levels)))
    alternatives = (
        f"{lower_branching**levels:,} ({lower_branching}^{levels}) or {(lower_branching + 1) ** levels:,} "
        f"({lower_branching + 1}^{levels})"
    )
    raise ValueError(f"a tree of {levels} levels cannot have {tokens:,} tokens; use {alternatives}, or depth 1")


def fit_codebook(
    blocks: FeatureBlocks,
    tokens: int,
    depth: int | None = None,
    projection: int = 256,
    whitening: float = 0.5,
    seed: int = 0,
) -> FittedCodebook:
    """Fits a codebook to a sample of features.

    Args:
        blocks: Called twice; yields the sample in blocks of (regions, dim), so that it need not fit into memory.
        tokens: Number of tokens; the tree may have fewer if its nodes have few members or features repeat.
        depth: Depth of the tree; see `choose_tree_shape`.
        projection: Number of principal axes to keep.
        whitening: Each axis is divided by its std to this power: 0 for no whitening, 1 for full whitening.
        seed: Random seed of k-means++; the same seed and sample give the same codebook.
    """
    branching, levels = choose_tree_shape(tokens, depth)
    mean, axes = compute_principal_axes(blocks(), projection, whitening)
    points = np.concatenate([project_features(block, mean, axes).numpy() for block in blocks()])
    if len(points) < tokens:
        raise ValueError(f"{len(points):,} regions are too few for {tokens:,} tokens")
    tree = grow_cluster_tree(points, branching, levels, seed)
    return FittedCodebook(build_codebook(tree, mean, axes), tree.inertia)


def compute_principal_axes(
    blocks: Iterable[Float[Tensor, "_ dim"]], projection: int, whitening: float
) -> tuple[Float[Tensor, " dim"], Float[Tensor, "dim projection"]]:
    """Mean of the features scaled to length 1, and their principal axes, each divided by its std**whitening."""
    count, total, products = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for block in blocks:
        rows = F.normalize(block.float())
        count, total, products = count + len(rows), total + rows.double().sum(0), products + (rows.mT @ rows).double()
    if not count:
        raise ValueError("no regions to fit a codebook to")
    mean = total / count
    variances, axes = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    variances, axes = variances.flip(0)[:projection], axes.flip(1)[:, :projection]
    has_variance = variances > MIN_VARIANCE
    if not has_variance.any():
        raise ValueError("all region features are the same; there is nothing to cluster")
    variances, axes = variances[has_variance], axes[:, has_variance]
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # LAPACK leaves the signs open
    return mean.float(), (axes * signs * variances ** (-whitening / 2)).float()


def grow_cluster_tree(
    points: Float32[np.ndarray, "regions projection"], branching: int, depth: int, seed: int
) -> ClusterTree:
    """Splits nodes level by level; a node with too few members, or with one distinct feature, stays a leaf."""
    centers: list[np.ndarray] = []
    children: list[list[int]] = []
    inertia: list[float] = []
    roots, squared = 0, np.zeros(len(points), np.float32)
    frontier = [(-1, np.arange(len(points)))]
    for level in range(depth):
        next_frontier = []
        for parent, members in frontier:
            if level and len(members) < MIN_MEMBERS_PER_CHILD * branching:
                continue
            inside = points[members] if level else points
            child_centers, nearest, distances = run_kmeans(inside, branching, seed)
            if level and len(child_centers) < 2:
                continue
            squared[members] = distances
            for index, center in enumerate(child_centers):
                if level:
                    children[parent].append(len(centers))
                next_frontier.append((len(centers), members[nearest == index]))
                centers.append(center)
                children.append([])
        frontier = next_frontier
        roots = roots or len(centers)
        inertia.append(float(squared.mean(dtype=np.float64)))
    return ClusterTree(np.stack(centers), children, roots, tuple(inertia))


def run_kmeans(
    points: Float32[np.ndarray, "regions projection"], clusters: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k-means of one node: the centers of non-empty clusters, and each point's center and squared distance.

    Runs in one OpenMP thread: with more, scikit-learn's order of summation differs between runs.
    """
    if len(points) * clusters <= MAX_LLOYD_DISTANCES:
        fit = KMeans(clusters, n_init=KMEANS_RESTARTS, random_state=seed)
    else:
        fit = MiniBatchKMeans(
            clusters,
            n_init=1,
            batch_size=max(KMEANS_BATCH_SIZE, 4 * clusters),
            max_iter=MAX_KMEANS_PASSES,
            compute_labels=False,
            random_state=seed,
        )
    with threadpool_limits(1, "openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters: the table reports it
        centers = fit.fit(points).cluster_centers_.astype(np.float32)
        nearest, squared = pairwise_distances_argmin_min(points, centers, metric="sqeuclidean")
    used, nearest = np.unique(nearest, return_inverse=True)
    return centers[used], nearest, squared


def build_codebook(tree: ClusterTree, mean: Float[Tensor, " dim"], axes: Float[Tensor, "dim projection"]) -> Codebook:
    """The tree's tensors, with leaves numbered by token id."""
    leaves = [node for node, inside in enumerate(tree.children) if not inside]
    levels = np.zeros(len(tree.children), np.int64)
    for node, inside in enumerate(tree.children):
        levels[inside] = levels[node] + 1
    config = CodebookConfig(
        dim=axes.shape[0],
        projection=axes.shape[1],
        tokens=len(leaves),
        nodes=len(tree.children),
        roots=tree.roots,
        branching=max(map(len, tree.children)),
        depth=int(levels.max()) + 1,
    )
    codebook = Codebook(config)
    codebook.mean.copy_(mean)
    codebook.axes.copy_(axes)
    codebook.centers.copy_(torch.from_numpy(tree.centers))
    for node, inside in enumerate(tree.children):
        codebook.child_nodes[node, : len(inside)] = torch.tensor(inside, dtype=torch.long)
    codebook.token_of_node[torch.tensor(leaves)] = torch.arange(len(leaves))
    return codebook.eval()
