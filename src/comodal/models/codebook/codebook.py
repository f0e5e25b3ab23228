"""Visual tokens: a codebook over region features, searched as a tree (ViLBERT, section 2.2, discusses it as an input
and rejects it).

Tokens are used as targets for masked regions, as an alternative input, and in place of class probabilities for regions
without a classifier. Hierarchical k-means is VideoBERT's (Sun et al., 2019, section 4.2: branching 12, depth 4): a
feature is compared with 4 x 12 centers instead of 20,736. Depth 1 is flat k-means. `models/codebook/clustering.py`
fits a codebook.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.errors import CheckpointError, check_number
from comodal.models.checkpoint import load_model
from comodal.models.pretrained import PretrainedModel

MAX_ROWS_AT_ONCE = 1024  # batch size of regions: their children's centers take 42 MB at branching 40 and 256 dimensions

MAX_SIZE = 1 << 24


@dataclass(frozen=True)
class CodebookConfig:
    """The shape of a fitted tree.

    Args:
        dim: Length of a region's feature.
        projection: Length of a feature after the projection.
        tokens: Number of leaves.
        nodes: Number of nodes below the root.
        roots: Number of nodes on the first level, which come first.
        branching: Maximum number of children of a node; 0 in a tree of depth 1.
        depth: Number of levels.
    """

    dim: int
    projection: int
    tokens: int
    nodes: int
    roots: int
    branching: int = 0
    depth: int = 1

    def __post_init__(self) -> None:
        for name in ("dim", "projection", "tokens", "nodes", "roots", "depth"):
            check_number(name, getattr(self, name), 1, MAX_SIZE)
        check_number("branching", self.branching, 0, MAX_SIZE)


class Codebook(PretrainedModel, nn.Module):
    """Nodes are ordered by level; token ids are the indices of the leaves in that order."""

    mean: Tensor
    axes: Tensor
    centers: Tensor
    child_nodes: Tensor
    token_of_node: Tensor

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        if not 1 <= config.roots <= config.nodes or not 1 <= config.tokens <= config.nodes or config.depth < 1:
            raise ValueError(f"{config} is not the shape of a tree")
        self.config = config
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("axes", torch.zeros(config.dim, config.projection))
        self.register_buffer("centers", torch.zeros(config.nodes, config.projection))
        self.register_buffer("child_nodes", torch.full((config.nodes, config.branching), -1))  # children; -1: none
        self.register_buffer("token_of_node", torch.full((config.nodes,), -1))  # -1: not a leaf

    def forward(self, features: Float[Tensor, "regions dim"]) -> Int64[Tensor, " regions"]:
        """The token of each region: the leaf reached by choosing the nearest child at every node."""
        return self.assign_tokens(self.project(features))

    def project(self, features: Float[Tensor, "regions dim"]) -> Float[Tensor, "regions projection"]:
        """Projects features: to length 1, centered, to the principal axes, to length 1 again."""
        if features.shape[1] != self.config.dim:
            raise ValueError(f"features of length {features.shape[1]}; this codebook takes {self.config.dim}")
        return project_features(features, self.mean, self.axes)

    def assign_tokens(self, points: Float[Tensor, "regions projection"]) -> Int64[Tensor, " regions"]:
        """The tokens of projected features."""
        return torch.cat([self.token_of_node[self.find_leaf(part)] for part in points.split(MAX_ROWS_AT_ONCE)])

    def find_leaf(self, points: Float[Tensor, "regions projection"]) -> Int64[Tensor, " regions"]:
        """The leaf node of each projected feature."""
        node = torch.cdist(points, self.centers[: self.config.roots]).argmin(1)
        for _ in range(self.config.depth - 1):
            children = self.child_nodes[node]  # (regions, branching)
            distances = torch.cdist(points.unsqueeze(1), self.centers[children]).squeeze(1)
            nearest = distances.masked_fill(children < 0, torch.inf).argmin(1, keepdim=True)
            node = torch.where(children[:, 0] < 0, node, children.gather(1, nearest).squeeze(1))
        return node

    def get_leaf_centers(self) -> Float[Tensor, "tokens projection"]:
        """The center of each token, in projected features."""
        return self.centers[self.token_of_node >= 0]

    def compute_distances(self, features: Float[Tensor, "regions dim"]) -> Float[Tensor, "regions tokens"]:
        """Euclidean distance of each region to each token's center, both projected.

        The nearest token is not always that of `forward`, since the tree search is greedy.
        """
        return torch.cdist(self.project(features), self.get_leaf_centers())

    def compute_probabilities(
        self, features: Float[Tensor, "regions dim"], nearest: int = 8, temperature: float = 0.1
    ) -> Float[Tensor, "regions tokens"]:
        """Soft assignment: exp(-distance / temperature) over the nearest tokens, 0 for all others; sums to 1."""
        if nearest < 1 or temperature <= 0:
            raise ValueError(f"nearest ({nearest}) must be at least 1 and temperature ({temperature}) positive")
        distances = self.compute_distances(features)
        closest, tokens = distances.topk(min(nearest, self.config.tokens), largest=False)
        return torch.zeros_like(distances).scatter_(1, tokens, torch.softmax(-closest / temperature, 1))


def project_features(
    features: Float[Tensor, "regions dim"], mean: Float[Tensor, " dim"], axes: Float[Tensor, "dim projection"]
) -> Float[Tensor, "regions projection"]:
    """Scales to length 1, centers, projects and scales again, in single precision also under autocast."""
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize((F.normalize(features.float()) - mean) @ axes)


def find_codebook_folder(path: Path) -> Path:
    """The codebook folder of a region store; any other path is taken as a codebook's own folder."""
    inside = path / "codebook"
    return inside if inside.is_dir() else path


def load_codebook(path: Path) -> Codebook:
    """Loads a codebook from its folder, or from a region store that has one.

    Raises:
        CheckpointError: There is none, it is damaged, or it is another kind of model.
    """
    model = load_model(find_codebook_folder(path))
    if not isinstance(model, Codebook):
        raise CheckpointError(f"{path}: a {type(model).__name__}; this needs a Codebook")
    return model
