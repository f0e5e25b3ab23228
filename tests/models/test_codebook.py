"""Codebooks against mixtures of known components, scikit-learn's PCA and k-means, and searches by brute force."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.testing import assert_close

from comodal.errors import CheckpointError
from comodal.models.checkpoint import save_model
from comodal.models.codebook.clustering import FittedCodebook, choose_tree_shape, compute_principal_axes, fit_codebook
from comodal.models.codebook.codebook import Codebook, CodebookConfig, load_codebook
from comodal.models.l3net.l3net import L3Net, L3NetConfig


def blocks(features: Tensor, size: int = 700) -> Iterator[Tensor]:
    return iter(features.split(size))


def fit(features: Tensor, tokens: int, depth: int | None = None, projection: int = 16, seed: int = 0) -> FittedCodebook:
    return fit_codebook(lambda: blocks(features), tokens, depth, projection, seed=seed)


def mixture(components: int, each: int, dim: int = 32, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Like region features: not negative, half of them zero, of very different lengths; and each one's component."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.randn(components, dim, generator=generator).relu()
    truth = torch.arange(components).repeat(each)
    features = (middles[truth] + 0.05 * torch.randn(len(truth), dim, generator=generator)).relu()
    return features * torch.exp(torch.randn(len(truth), 1, generator=generator)), truth.numpy()


def families(seed: int = 0) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Six families of six components each: 36 components, 240 features of each."""
    generator = torch.Generator().manual_seed(seed)
    middles = 4 * torch.eye(6, 48).repeat_interleave(6, 0)
    middles[torch.arange(36), 12 + torch.arange(36)] = 1.5
    truth = torch.arange(36).repeat(240)
    features = (middles[truth] + 0.05 * torch.randn(len(truth), 48, generator=generator)).relu()
    return features, truth.numpy(), truth.numpy() // 6


def walked(codebook: Codebook, feature: Tensor) -> int:
    """The tree's walk for one feature, in double precision, node by node."""
    unit = feature.double() / feature.double().norm()
    point = (unit - codebook.mean.double()) @ codebook.axes.double()
    point = point / point.norm()
    choice = list(range(codebook.config.roots))
    while choice:
        node = min(choice, key=lambda child: float((codebook.centers[child].double() - point).norm()))
        choice = [int(child) for child in codebook.child_nodes[node] if child >= 0]
    return int(codebook.token_of_node[node])


@pytest.fixture(scope="module")
def flat() -> tuple[FittedCodebook, Tensor, np.ndarray]:
    features, truth = mixture(20, 150)
    return fit(features, 20), features, truth


@pytest.fixture(scope="module")
def tree() -> tuple[FittedCodebook, Tensor]:
    features, _, _ = families()
    return fit(features, 36, depth=2, projection=40), features


def test_plain_k_means_recovers_the_components(flat: tuple[FittedCodebook, Tensor, np.ndarray]):
    fitted, features, truth = flat
    assert adjusted_rand_score(truth, fitted.codebook(features).numpy()) > 0.97


def test_the_tree_recovers_families_first_and_then_their_components(tree: tuple[FittedCodebook, Tensor]):
    fitted, _ = tree
    features, component, family = families(seed=1)  # which it has not seen
    codebook = fitted.codebook
    assert (codebook.config.roots, codebook.config.branching, codebook.config.depth) == (6, 6, 2)
    tokens = codebook(features).numpy()
    assert adjusted_rand_score(component, tokens) > 0.97
    parent = torch.full((codebook.config.nodes,), -1)
    for node, children in enumerate(codebook.child_nodes):
        parent[children[children >= 0]] = node
    above = parent[torch.nonzero(codebook.token_of_node >= 0)[:, 0]][tokens]
    assert adjusted_rand_score(family, above.numpy()) == 1.0


def test_tokens_are_numbered_without_gaps_and_siblings_side_by_side(tree: tuple[FittedCodebook, Tensor]):
    codebook = tree[0].codebook
    leaves = codebook.token_of_node[codebook.token_of_node >= 0]
    assert leaves.tolist() == list(range(codebook.config.tokens))
    for children in codebook.child_nodes[: codebook.config.roots]:
        inside = codebook.token_of_node[children[children >= 0]]
        assert inside.tolist() == list(range(int(inside[0]), int(inside[0]) + len(inside)))


def test_a_walk_down_the_tree_is_the_brute_force_walk(tree: tuple[FittedCodebook, Tensor]):
    """On features far from all centres too, where a wrong turn would show."""
    codebook = tree[0].codebook
    features = torch.rand(300, 48, generator=torch.Generator().manual_seed(3))
    assert codebook(features).tolist() == [walked(codebook, feature) for feature in features]


def test_with_one_level_the_token_is_the_nearest_centre(flat: tuple[FittedCodebook, Tensor, np.ndarray]):
    codebook = flat[0].codebook
    features = torch.rand(500, 32, generator=torch.Generator().manual_seed(3))
    assert codebook(features).tolist() == [walked(codebook, feature) for feature in features]
    assert torch.equal(codebook(features), codebook.compute_distances(features).argmin(1))


def test_neither_length_nor_order_nor_company_changes_a_token(tree: tuple[FittedCodebook, Tensor]):
    codebook, features = tree[0].codebook, tree[1][:3000]
    tokens = codebook(features)
    assert torch.equal(codebook(features), tokens)
    assert torch.equal(codebook(7.5 * features), tokens)
    assert torch.equal(codebook(features.flip(0)), tokens.flip(0))
    assert torch.equal(torch.cat([codebook(part) for part in features.split(37)]), tokens)
    assert len(codebook(features[:0])) == 0


def test_autocast_and_half_precision_keep_the_tokens_of_clear_cases(flat: tuple[FittedCodebook, Tensor, np.ndarray]):
    codebook, features = flat[0].codebook, flat[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook(features), flat[0].codebook(features))
    assert (codebook(features.half()) == codebook(features)).float().mean() > 0.999


def test_the_axes_are_those_of_scikit_learn():
    features, _ = mixture(6, 300, dim=12)
    unit = features / features.norm(dim=1, keepdim=True)
    oracle = PCA(5, whiten=True, svd_solver="full").fit(unit.double().numpy())
    whitened = oracle.transform(unit.double().numpy())
    for exponent in (0.0, 0.5, 1.0):
        mean, axes = compute_principal_axes(blocks(features), 5, exponent)
        ours = ((unit - mean) @ axes).double().numpy()
        expected = whitened * oracle.explained_variance_ ** ((1 - exponent) / 2)
        expected *= np.sign((ours * expected).sum(0))
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_inertia_is_scikit_learns_and_falls_with_every_level(tree: tuple[FittedCodebook, Tensor]):
    fitted, features = tree
    first, second = fitted.inertia
    assert second < first
    points = fitted.codebook.project(features)
    oracle = KMeans(6, n_init=3, random_state=5).fit(points.numpy())
    assert first == pytest.approx(oracle.inertia_ / len(points), rel=1e-3)
    chosen = fitted.codebook.get_leaf_centers()[fitted.codebook(features)]
    assert second == pytest.approx(float((points - chosen).square().sum(1).mean()), rel=1e-4)


def test_axes_without_variance_are_left_out():
    features, _ = mixture(4, 100, dim=10)
    codebook = fit(torch.cat([features, features], 1), 4, projection=20).codebook
    assert codebook.config.projection <= 10
    assert torch.isfinite(codebook.axes).all()


def test_the_seed_decides():
    features, _ = mixture(30, 60, dim=16)
    first, again, other = (fit(features, 25, seed=seed).codebook.state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["centers"], other["centers"])


def test_a_node_with_few_members_is_a_leaf():
    """40 features for each child are asked for: of 6 x 6, 1,000 features can split no node of the first level."""
    features, _, _ = families()
    fitted = fit(features[:1000], 36, depth=2)
    assert (fitted.codebook.config.tokens, fitted.codebook.config.depth, len(fitted.inertia)) == (6, 1, 2)
    assert fitted.inertia[0] == fitted.inertia[1]


def test_a_tree_of_uneven_depth_is_walked_to_its_leaves():
    """One family of six is rare: it stays a leaf of the first level while the others are split."""
    features, _, family = families()
    rare = np.flatnonzero(family == 5)[::7]
    chosen = torch.from_numpy(np.concatenate([np.flatnonzero(family < 5), rare]))
    codebook = fit_codebook(lambda: [features[chosen]], 36, 2, whitening=0.0).codebook
    assert codebook.config.tokens == 5 * 6 + 1
    tokens = codebook(features)
    assert set(tokens.tolist()) == set(range(31))
    assert len(set(tokens[torch.from_numpy(family == 5)].tolist())) == 1
    assert tokens[:200].tolist() == [walked(codebook, feature) for feature in features[:200]]


def test_repeated_features_give_fewer_tokens_and_no_warning():
    features, _ = mixture(5, 1)
    codebook = fit(features.repeat(40, 1), 12).codebook
    assert codebook.config.tokens == 5
    assert sorted(set(codebook(features).tolist())) == list(range(5))


def test_probabilities_are_a_soft_minimum_worked_by_hand():
    codebook = Codebook(CodebookConfig(dim=2, projection=2, tokens=3, nodes=3, roots=3))
    codebook.axes.copy_(torch.eye(2))
    codebook.centers.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    codebook.token_of_node.copy_(torch.arange(3))
    near = np.exp(-2.0 * np.sqrt(2.0))  # (5, 0) lies on the first centre, sqrt(2) from the second, 2 from the third
    expected = torch.tensor([[1.0, near, 0.0]]) / (1 + near)
    assert_close(
        codebook.compute_probabilities(torch.tensor([[5.0, 0.0]]), nearest=2, temperature=0.5), expected.float()
    )


def test_probabilities_add_up_and_agree_with_the_token(flat: tuple[FittedCodebook, Tensor, np.ndarray]):
    codebook, features = flat[0].codebook, flat[1]
    soft = codebook.compute_probabilities(features, nearest=4)
    assert_close(soft.sum(1), torch.ones(len(soft)))
    assert ((soft > 0).sum(1) <= 4).all()
    assert torch.equal(soft.argmax(1), codebook(features))
    assert_close(codebook.compute_probabilities(features, nearest=99).argmax(1), codebook(features))


def test_it_is_written_and_read_like_any_model(tree: tuple[FittedCodebook, Tensor], tmp_path: Path):
    codebook, features = tree[0].codebook, tree[1][:500]
    save_model(codebook, tmp_path / "store" / "codebook", {"seed": 0})
    for path in (tmp_path / "store", tmp_path / "store" / "codebook"):
        again = load_codebook(path)
        assert again.config == codebook.config
        assert torch.equal(again(features), codebook(features))
    with safe_open(tmp_path / "store" / "codebook" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"mean", "axes", "centers", "child_nodes", "token_of_node"}


def test_what_is_not_a_codebook_is_told(tmp_path: Path):
    save_model(L3Net(L3NetConfig(width=1, image_size=24)), tmp_path, {})
    with pytest.raises(CheckpointError, match="a L3Net; this needs a Codebook"):
        load_codebook(tmp_path)
    with pytest.raises(ValueError, match="not the shape of a tree"):
        Codebook(CodebookConfig(dim=2, projection=2, tokens=5, nodes=4, roots=4))


def test_features_of_another_size_are_told(flat: tuple[FittedCodebook, Tensor, np.ndarray]):
    with pytest.raises(ValueError, match="features of length 31; this codebook takes 32"):
        flat[0].codebook(torch.zeros(3, 31))


def test_too_few_regions_and_equal_regions_are_told():
    features, _ = mixture(5, 4)
    with pytest.raises(ValueError, match="20 regions are too few for 21 tokens"):
        fit(features, 21)
    with pytest.raises(ValueError, match="nothing to cluster"):
        fit(features[:1].repeat(50, 1), 3)
    with pytest.raises(ValueError, match="no regions"):
        fit(features[:0], 3)
    with pytest.raises(ValueError, match="temperature"):
        fit(features, 5).codebook.compute_probabilities(features, temperature=0.0)


@pytest.mark.parametrize(
    ("tokens", "depth", "shape"),
    [
        (1600, None, (1600, 1)),
        (1600, 2, (40, 2)),
        (20_736, None, (12, 4)),  # VideoBERT
        (4096, None, (16, 3)),
        (4096, 1, (4096, 1)),
        (1_000_000, None, (10, 6)),
    ],
)
def test_the_shape_of_a_tree(tokens: int, depth: int | None, shape: tuple[int, int]):
    assert choose_tree_shape(tokens, depth) == shape


def test_numbers_that_are_no_power_name_their_neighbours():
    with pytest.raises(ValueError, match=r"cannot have 5,000 tokens; use 4,913 \(17\^3\) or 5,832 \(18\^3\)"):
        choose_tree_shape(5000)
    with pytest.raises(ValueError, match=r"961 \(31\^2\) or 1,024 \(32\^2\), or depth 1"):
        choose_tree_shape(1000, 2)
    with pytest.raises(ValueError, match=r"tokens \(1\) must be at least 2"):
        choose_tree_shape(1)


def test_the_shape_stands_in_the_configuration(tree: tuple[FittedCodebook, Tensor]):
    config = tree[0].codebook.config
    assert dataclasses.asdict(config) == {
        "dim": 48,
        "projection": 40,
        "tokens": 36,
        "nodes": 42,
        "roots": 6,
        "branching": 6,
        "depth": 2,
    }
