"""Visual tokens of a store and the page about them: counts by hand, nearest regions by sorting, kills at every step."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image
from scipy.stats import entropy
from sklearn.metrics import adjusted_rand_score

from comodal.analysis.pages.token_page import TokenRegion, TokenUse, build_token_page, compute_perplexity, crop_region
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.errors import CheckpointError, DataError
from comodal.media.image import decode_jpeg
from comodal.models.checkpoint import read_model_about
from comodal.models.codebook.codebook import load_codebook
from comodal.regions.visual_tokens import prepare_tokens, sample_regions
from tests.support.self_contained import check_page


def test_perplexity_of_equal_use_is_the_number_of_tokens_and_of_one_token_one():
    assert compute_perplexity(np.full(37, 5)) == pytest.approx(37.0)
    assert compute_perplexity(np.array([9, 0, 0])) == 1.0
    # 1/2, 1/4, 1/4: 1.5 bits
    assert compute_perplexity(np.array([2, 0, 1, 1])) == pytest.approx(2**1.5)
    assert compute_perplexity(np.zeros(4, np.int64)) == 1.0


def test_the_nearest_regions_of_each_token_are_kept_whatever_the_blocks():
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 9, 5000)
    tokens[tokens == 4] = 5  # never used
    tokens[2345] = 4  # but once
    distances = generator.uniform(0, 1, 5000).astype(np.float32)
    use = TokenUse(10, 3)
    for first in range(0, 5000, 333):
        use.add(first, tokens[first : first + 333], distances[first : first + 333])
    assert use.counts.tolist() == np.bincount(tokens, minlength=10).tolist()
    for token in range(10):
        inside = np.flatnonzero(tokens == token)
        expected = inside[np.argsort(distances[inside])][:3].tolist()
        assert use.rows[token].tolist() == expected + [-1] * (3 - len(expected))
    assert use.compute_summary().used == 9
    assert use.compute_summary().min_count == 0


def test_shown_tokens_run_from_the_most_frequent_to_the_rarest_used():
    use = TokenUse(6, 1)
    use.counts[:] = [5, 0, 9, 1, 7, 3]
    assert use.select_tokens(3) == [2, 0, 3]
    assert use.select_tokens(50) == [2, 4, 0, 5, 3]


def striped(path: Path) -> Path:
    """Left half red, right half blue, 80 x 40."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40, 0] = pixels[:, 40:, 2] = 255
    Image.fromarray(pixels).save(path)
    return path


def test_a_crop_is_the_box_even_in_a_picture_of_another_size(tmp_path: Path):
    path = striped(tmp_path / "a.png")
    jpeg = crop_region(path, TokenRegion("a", 160, 80, (80.0, 0.0, 160.0, 80.0)))  # the right half, at twice the size
    assert jpeg is not None
    red, _, blue = decode_jpeg(jpeg).reshape(-1, 3).mean(0)
    assert red < 5
    assert blue > 250


def test_boxes_outside_the_picture_and_damaged_pictures_give_no_crop(tmp_path: Path):
    path = striped(tmp_path / "a.png")
    assert crop_region(path, TokenRegion("a", 80, 40, (90.0, 0.0, 99.0, 40.0))) is None
    assert crop_region(path, TokenRegion("a", 80, 40, (-5.0, -5.0, 200.0, 1.0))) is not None  # long, thin, clipped
    (tmp_path / "b.jpg").write_bytes(b"none")
    assert crop_region(tmp_path / "b.jpg", TokenRegion("b", 80, 40, (0.0, 0.0, 9.0, 9.0))) is None


def test_the_page_stands_alone_and_escapes_what_it_is_told(tmp_path: Path):
    striped(tmp_path / "a.png")
    use = TokenUse(2, 1)
    use.add(0, np.array([0, 0, 1]), np.array([0.1, 0.2, 0.3], np.float32))
    examples = {
        0: [TokenRegion("a", 80, 40, (0.0, 0.0, 40.0, 40.0))],
        1: [TokenRegion("<b>&", 80, 40, (1.0, 2.0, 3.0, 4.0))],
    }
    page = build_token_page("<title>", use, (0.5, 0.25), examples, tmp_path)
    read = check_page(page)
    assert read.texts_of("h1") == ["<title>"]
    assert "<b>&: 1, 2, 3, 4" in read.texts_of("figcaption")
    (jpeg,) = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert decode_jpeg(base64.b64decode(jpeg)).reshape(-1, 3).mean(0)[0] > 250
    assert read.rows() == [["1", "0.5000"], ["2", "0.2500"]]
    assert "data:image/jpeg" not in build_token_page("t", use, (), examples, None)


def test_pictures_of_one_name_in_two_folders_are_not_mixed_up(tmp_path: Path):
    """Their ids have the folder; a store of other people's features may have the name alone, or a point inside it."""
    for place, colour in (("x/1.png", 0), ("y/1.png", 2), ("2008.12.png", 1)):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        pixels = np.zeros((40, 40, 3), np.uint8)
        pixels[..., colour] = 255
        Image.fromarray(pixels).save(tmp_path / place)
    use = TokenUse(1, 5)
    use.add(0, np.zeros(5, np.int64), np.arange(5, dtype=np.float32))
    names = ("x/1", "y/1", "y/1.png", "2008.12", "2008.12.png")
    page = build_token_page(
        "t", use, (), {0: [TokenRegion(name, 40, 40, (0.0, 0.0, 40.0, 40.0)) for name in names]}, tmp_path
    )
    shown = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    colours = [int(decode_jpeg(base64.b64decode(jpeg)).reshape(-1, 3).mean(0).argmax()) for jpeg in shown]
    assert colours == [0, 2, 2, 1, 1]


def write_store(folder: Path, images: int = 30, each: int = 24, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Regions of eight kinds, half of them in the first half of the images; returns each row's kind."""
    generator = np.random.default_rng(seed)
    middles = 4.0 * np.eye(8, dim) + 0.2
    kinds = generator.integers(0, 8, (images, each))
    with RegionWriter(folder, dim) as writer:
        for image, inside in enumerate(kinds):
            features = np.maximum(middles[inside] + 0.1 * generator.standard_normal((each, dim)), 0).astype(np.float32)
            corners = generator.uniform(0, 40, (each, 2))
            boxes = np.concatenate([corners, corners + generator.uniform(10, 50, (each, 2))], 1).astype(np.float32)
            writer.add(f"image{image}", features, boxes, 100, 100)
    return kinds.ravel()


def tokens_of(folder: Path) -> np.ndarray:
    store = RegionStore(folder)
    return np.concatenate([store.read_regions(image).visual_tokens for image in range(len(store))])


def test_every_region_gets_the_token_of_its_kind(tmp_path: Path):
    kinds = write_store(tmp_path / "s")
    found = prepare_tokens(tmp_path / "s", tokens=8)
    store = RegionStore(tmp_path / "s")
    assert store.tokens == found.tokens == 8
    assert adjusted_rand_score(kinds, tokens_of(tmp_path / "s")) == 1.0
    counts = np.bincount(kinds)
    assert found.perplexity == pytest.approx(np.exp(entropy(counts)), rel=1e-6)
    assert (found.max_count, found.min_count) == (counts.max(), counts.min())


def test_the_file_holds_the_codebooks_tokens_in_the_order_of_the_rows(tmp_path: Path):
    """Also across blocks, and read without the library."""
    write_store(tmp_path / "s", images=400, each=25)
    prepare_tokens(tmp_path / "s", tokens=8)
    store, codebook = RegionStore(tmp_path / "s"), load_codebook(tmp_path / "s")
    features = torch.cat([torch.from_numpy(np.array(store.read_regions(image).features)) for image in range(400)])
    assert np.fromfile(tmp_path / "s" / "tokens.bin", "<u2").tolist() == codebook(features).tolist()


def test_the_seed_decides_and_the_same_command_writes_the_same_bytes(tmp_path: Path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_store(tmp_path / name)
        prepare_tokens(tmp_path / name, tokens=12, seed=seed, per_image=6)
    first, again, other = ((tmp_path / name / "codebook" / "model.safetensors").read_bytes() for name in "abc")
    assert first == again != other
    assert (tmp_path / "a" / "tokens.bin").read_bytes() == (tmp_path / "b" / "tokens.bin").read_bytes()


def test_another_stores_codebook_is_applied_unchanged(tmp_path: Path):
    write_store(tmp_path / "train")
    kinds = write_store(tmp_path / "validation", seed=1)
    prepare_tokens(tmp_path / "train", tokens=8)
    found = prepare_tokens(tmp_path / "validation", apply=tmp_path / "train")
    assert adjusted_rand_score(kinds, tokens_of(tmp_path / "validation")) == 1.0
    first, second = (load_codebook(tmp_path / name).state_dict() for name in ("train", "validation"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not found.inertia
    assert (
        read_model_about(tmp_path / "validation" / "codebook")["regions"] == RegionStore(tmp_path / "train").fingerprint
    )


def test_soft_classes_stand_in_for_a_classifiers(tmp_path: Path):
    write_store(tmp_path / "s")
    prepare_tokens(tmp_path / "s", tokens=8, classes=True)
    store = RegionStore(tmp_path / "s")
    assert store.classes == 8
    regions = store.read_regions(7)
    assert_allclose(regions.classes.astype(np.float32).sum(1), 1.0, atol=2e-3)
    assert regions.classes.argmax(1).tolist() == regions.visual_tokens.tolist()
    prepare_tokens(tmp_path / "s", tokens=9)  # whose tokens the old classes would not fit
    assert (RegionStore(tmp_path / "s").classes, RegionStore(tmp_path / "s").tokens) == (0, 9)


def test_a_classifiers_probabilities_are_not_replaced(tmp_path: Path):
    features, boxes = np.random.default_rng(0).random((20, 4), np.float32), np.tile(np.float32([0, 0, 9, 9]), (20, 1))
    with RegionWriter(tmp_path / "s", 4, classes=3) as writer:
        writer.add("a", features, boxes, 10, 10, np.full((20, 3), 1 / 3, np.float32))
    with pytest.raises(DataError, match="class probabilities of a classifier"):
        prepare_tokens(tmp_path / "s", tokens=4, classes=True, per_image=20)
    prepare_tokens(tmp_path / "s", tokens=4, per_image=20)
    assert RegionStore(tmp_path / "s").classes == 3


def test_a_sample_is_spread_over_images_and_leaves_tiny_boxes_out(tmp_path: Path):
    boxes = np.tile(np.float32([0, 0, 50, 50]), (40, 1))
    boxes[::2] = [0, 0, 3, 3]  # 0.09 % of the image
    with RegionWriter(tmp_path / "s", 4) as writer:
        for image in range(20):
            writer.add(f"image{image}", np.ones((40, 4), np.float32), boxes, 100, 100)
    store = RegionStore(tmp_path / "s")
    chosen = sample_regions(store, sample=1000, per_image=8, min_area_fraction=0.001, seed=0)
    assert [image for image, _ in chosen] == list(range(20))
    assert all(len(set(rows.tolist())) == 8 and (rows % 2 == 1).all() for _, rows in chosen)
    few = sample_regions(store, sample=50, per_image=8, min_area_fraction=0.001, seed=0)
    assert sum(len(rows) for _, rows in few) == 50
    assert len(few) == 7
    assert [image for image, _ in few] != [image for image, _ in sample_regions(store, 50, 8, 0.001, seed=1)]


class Killed(BaseException):
    """As sudden as a signal."""


@pytest.mark.parametrize("step", ["save_model", "assign_tokens", "register_visual_tokens"])
def test_a_killed_command_leaves_no_tokens_or_the_right_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    kinds = write_store(tmp_path / "s")
    prepare_tokens(tmp_path / "s", tokens=9)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"comodal.regions.visual_tokens.{step}", killed)
        with pytest.raises(Killed):
            prepare_tokens(tmp_path / "s", tokens=8)
    store = RegionStore(tmp_path / "s")
    assert store.tokens == 0
    assert store.read_regions(0).visual_tokens is None
    (tmp_path / "s" / ".tokens.bin.1.part").touch()  # what a signal leaves, and an exception does not
    prepare_tokens(tmp_path / "s", tokens=8)
    assert adjusted_rand_score(kinds, tokens_of(tmp_path / "s")) == 1.0
    assert not list((tmp_path / "s").rglob(".*"))


def test_what_does_not_fit_is_told_and_nothing_is_touched(tmp_path: Path):
    write_store(tmp_path / "s")
    write_store(tmp_path / "other", dim=20)
    prepare_tokens(tmp_path / "s", tokens=8)
    write_store(tmp_path / "t", dim=20)
    prepare_tokens(tmp_path / "t", tokens=8)
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"features of length 20; those of .*s have length 16"):
        prepare_tokens(tmp_path / "s", apply=tmp_path / "t")
    with pytest.raises(
        DataError, match=r"240 regions \(of 30 images, at most 8 each\) cannot be clustered to 300 tokens"
    ):
        prepare_tokens(tmp_path / "s", tokens=300)
    with pytest.raises(CheckpointError, match="no model found"):
        prepare_tokens(tmp_path / "s", apply=tmp_path / "other")
    with pytest.raises(ValueError, match=r"per_image \(0\)"):
        prepare_tokens(tmp_path / "s", per_image=0)
    assert before == {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}


def test_features_that_are_no_numbers_are_told(tmp_path: Path):
    write_store(tmp_path / "s")
    raw = np.memmap(tmp_path / "s" / "features.bin", np.float16, "r+")
    raw[16 * 24 * 4 + 3] = np.nan
    raw.flush()
    with pytest.raises(DataError, match="image4 are not finite"):
        prepare_tokens(tmp_path / "s", tokens=8, per_image=24)


def test_the_page_shows_the_regions_nearest_to_their_token(tmp_path: Path):
    write_store(tmp_path / "s")
    striped(tmp_path / "image3.png")
    prepare_tokens(tmp_path / "s", tokens=8, images=tmp_path)
    page = check_page((tmp_path / "s" / "tokens.html").read_text())
    assert page.count_class("row") == 8
    assert page.tags.count("figure") == 8 * 8
    crops = [text.partition(":")[0] for text in page.values_of("img", "alt")[1:]]  # without the figure of frequencies
    assert set(crops) <= {"image3"}
