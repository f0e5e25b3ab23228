"""L3-Net's counts, its variants, and what its embeddings must not depend on."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from comodal.models.l3net.l3net import (
    L3EMBEDDING_L3NET_CONFIG,
    PAPER_L3NET_CONFIG,
    L3Net,
    L3NetConfig,
    make_openl3_config,
    make_small_l3net_config,
    max_pool_to_grid,
)


def pair(image_size: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch, 3, image_size, image_size), generator=generator, dtype=torch.uint8)
    return image, 0.1 * torch.randn(batch, 48_000, generator=generator)


def test_the_papers_network_has_the_authors_number_of_parameters():
    """9,508,738 is what Keras printed for the authors' model (l3embedding, notebooks/test_load_converted_model)."""
    model = L3Net(PAPER_L3NET_CONFIG)
    assert sum(p.numel() for p in model.parameters()) == 9_508_738
    moving = sum(b.numel() for name, b in model.named_buffers() if "running" in name)
    assert moving == 7_680  # 9,516,418 with what Keras calls non-trainable
    assert sum(p.numel() for p in L3Net(L3EMBEDDING_L3NET_CONFIG).parameters()) == 9_508_738


def test_openl3_adds_the_norms_of_its_inputs():
    """The count that Keras printed for the whole correspondence model: 9,516,434."""
    model = L3Net(make_openl3_config("mel128"))
    moving = sum(b.numel() for name, b in model.named_buffers() if "running" in name)
    assert sum(p.numel() for p in model.parameters()) + moving == 9_516_434


@pytest.mark.parametrize(
    "config",
    [PAPER_L3NET_CONFIG, make_openl3_config("mel256"), make_openl3_config("mel128"), make_openl3_config("linear")],
)
def test_embeddings_have_the_published_sizes(config: L3NetConfig):
    """8192 and 6144 at 8 x 64 filters; a width of 4 has a sixteenth of them."""
    model, (image, sound) = L3Net(dataclasses.replace(config, width=4)).eval(), pair(224, 1)
    with torch.inference_mode():
        assert model.embed_image(image).shape == (1, 8192 // 16)
        assert model.embed_audio(sound).shape == (1, 6144 // 16)
        assert model.embed_audio(sound, grid=(1, 1)).shape == (1, 512 // 16)


@pytest.mark.parametrize("image_size", [28, 32, 64])
def test_small_pictures_have_grids_no_finer_than_their_map(image_size: int):
    model, (image, sound) = L3Net(make_small_l3net_config(4, image_size)).eval(), pair(image_size)
    rows = image_size // 8
    with torch.inference_mode():
        output = model(image, sound)
        assert model.compute_image_map(image).shape == (2, 32, rows, rows)
        assert model.embed_image(image).shape == (2, 32 * min(4, rows) ** 2)
    assert output.logits.shape == (2, 2)
    assert output.image_features.shape == output.audio_features.shape == (2, 32)


def test_features_are_pooled_in_the_order_row_column_channel():
    """Keras flattens with the channels last; worked by hand on a 2 x 4 map pooled to 2 x 2."""
    feature_map = torch.tensor([[[[1, 2, 3, 4], [5, 6, 7, 8]], [[-1, -2, -3, -4], [-5, -6, -7, -8]]]]).float()
    assert max_pool_to_grid(feature_map, (2, 2)).tolist() == [[2, -1, 4, -3, 6, -5, 8, -7]]


def test_the_whole_map_is_the_features_that_fusion_sees():
    model, (image, sound) = L3Net(make_small_l3net_config(4, 32)).eval(), pair(32)
    with torch.inference_mode():
        output = model(image, sound)
        assert torch.equal(output.image_features, model.embed_image(image, grid=(1, 1)))
        assert torch.equal(output.audio_features, model.embed_audio(sound, grid=(1, 1)))


def test_openl3s_embeddings_can_be_negative_and_the_papers_cannot():
    (image, sound), width = pair(224, 1), 4
    for config, negative in ((PAPER_L3NET_CONFIG, False), (make_openl3_config("mel128"), True)):
        model = L3Net(dataclasses.replace(config, width=width)).eval()
        with torch.inference_mode():
            assert bool((model.compute_image_map(image) < 0).any()) == negative
            assert bool((model.compute_audio_map(sound) < 0).any()) == negative


def test_bytes_become_minus_one_to_one():
    model = L3Net(make_small_l3net_config(4, 32))
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert_close(model.normalize_image(image).flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_a_pairs_scores_do_not_depend_on_the_rest_of_the_batch():
    model, (image, sound) = L3Net(make_small_l3net_config(4, 32)).eval(), pair(32, 4)
    with torch.inference_mode():
        assert_close(model(image, sound).logits[1:2], model(image[1:2], sound[1:2]).logits)


def test_it_fits_pairs_of_bright_and_loud():
    """A bright picture belongs to noise, a dark one to near silence: a rule that one number of each side decides."""
    torch.manual_seed(0)
    model = L3Net(make_small_l3net_config(4, 32)).to(memory_format=torch.channels_last)
    bright, loud = torch.tensor([0, 1, 0, 1] * 4), torch.tensor([0, 0, 1, 1] * 4)
    together = (bright == loud).long()
    image = (torch.rand(16, 3, 32, 32) * 100 + 150 * bright.view(-1, 1, 1, 1)).to(torch.uint8)
    sound = torch.randn(16, 48_000) * torch.where(loud == 1, 0.3, 0.003).unsqueeze(1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(image, sound).logits, together)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1  # chance: 0.69


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"unknown layers in relu_before_norm: \['conv9_9'\]"):
        L3Net(L3NetConfig(relu_before_norm=("conv9_9",)))


@pytest.mark.slow
def test_the_whole_network_compiles_into_one_graph():
    """In a process of its own: the checks of shapes that every test run adds are not Python that can be compiled.

    No code is generated; what matters is that nothing breaks the graph.
    """
    code = """
import torch
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
model = L3Net(make_small_l3net_config(4, 32))
image, sound = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.randn(2, 48_000)
compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
with torch.autocast("cpu", torch.bfloat16):
    torch.testing.assert_close(compiled(image, sound).logits, model(image, sound).logits, atol=0.05, rtol=0)
compiled(image, sound).logits.sum().backward()
assert model.image_tower.layers["conv1_1"].convolution.weight.grad is not None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_images_that_are_not_bytes_are_refused():
    model, (image, sound) = L3Net(make_small_l3net_config(4)).eval(), pair(64)
    with pytest.raises(TypeError):  # ours, or that of the check of shapes that every test run adds
        model(image / 255, sound)


@pytest.mark.parametrize("train", [False, True])
def test_audio_of_another_length_is_refused(train: bool):
    model, (image, sound) = L3Net(make_small_l3net_config(4)).train(train), pair(64)
    for wrong in (sound[:, :-1], sound.repeat(1, 2)):
        for take in (lambda wrong=wrong: model(image, wrong), lambda wrong=wrong: model.embed_audio(wrong)):
            with pytest.raises(ValueError, match="this model takes 48,000, 1 s at 48,000 Hz"):
                take()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_audio_that_is_not_finite_is_refused(value: float):
    """In training the loss is checked, which names the samples."""
    model, (image, sound) = L3Net(make_small_l3net_config(4)).eval(), pair(64)
    sound[1, 7] = value
    for take in (lambda: model(image, sound), lambda: model.embed_audio(sound)):
        with pytest.raises(ValueError, match="not finite"):
            take()
    model.train()(image, sound)
