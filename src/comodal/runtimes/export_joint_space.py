"""The exportable networks of the models with a joint embedding space: AVE-Net and the dual encoder."""

import copy

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from comodal.models.ave_net.ave_net import AVENet
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.runtimes.export_spectrogram import PortableSpectrogram
from comodal.runtimes.exportable import (
    CorrespondenceNetwork,
    ExportableNetwork,
    Sizes,
    copy_without_parts,
    make_noise_with_tone,
)

BATCH_TRIALS = tuple({"batch": batch} for batch in (2, 1, 5))


class ImageSpaceEmbedder(nn.Module):
    """From images to AVE-Net's embeddings; for AVOL-Net those of all positions."""

    def __init__(self, model: AVENet) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch image_features"]:
        return self.model.compute_image_features(image)


class AudioSpaceEmbedder(nn.Module):
    """From waveforms to AVE-Net's embeddings."""

    def __init__(self, model: AVENet) -> None:
        super().__init__()
        self.model = model

    def forward(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch features"]:
        return self.model.compute_audio_features(audio)


def list_ave_net_networks(model: AVENet) -> list[ExportableNetwork]:
    """The image embedder, the audio embedder, and the whole model."""
    config = model.config
    portable = copy.deepcopy(model)
    portable.spectrogram = PortableSpectrogram(config.spectrogram)
    size, samples = config.image_size, round(config.audio_seconds * config.sample_rate)

    def make_image(generator: torch.Generator, sizes: Sizes) -> Tensor:
        return torch.randint(0, 256, (sizes["batch"], 3, size, size), generator=generator, dtype=torch.uint8)

    def make_audio(generator: torch.Generator, sizes: Sizes) -> Tensor:
        return make_noise_with_tone(generator, sizes["batch"], samples, config.sample_rate)

    image_model = copy_without_parts(portable, "audio_tower", "audio_head", "spectrogram")
    audio_model = copy_without_parts(portable, "image_tower", "image_head")
    image_axes: dict[str, tuple[str, ...]] = {"image": ("batch", "", "", "")}
    audio_axes: dict[str, tuple[str, ...]] = {"audio": ("batch", "")}
    return [
        ExportableNetwork(
            "image", ImageSpaceEmbedder(image_model), model.compute_image_features, image_axes, ("embedding",),
            lambda generator, sizes: (make_image(generator, sizes),), BATCH_TRIALS, {},
        ),
        ExportableNetwork(
            "audio", AudioSpaceEmbedder(audio_model), model.compute_audio_features, audio_axes, ("embedding",),
            lambda generator, sizes: (make_audio(generator, sizes),), BATCH_TRIALS, {},
        ),
        ExportableNetwork(
            "ave_net", CorrespondenceNetwork(portable), model, image_axes | audio_axes,
            ("logits", "image_features", "audio_features"),
            lambda generator, sizes: (make_image(generator, sizes), make_audio(generator, sizes)), BATCH_TRIALS, {},
        ),
    ]  # fmt: skip


class TextSpaceEmbedder(nn.Module):
    """From tokens to a dual encoder's embeddings."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, token_ids: Int64[Tensor, "batch length"], token_mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch dim"]:
        return self.model.embed_text_features(self.model.compute_text_features(token_ids, token_mask))


class RegionSpaceEmbedder(nn.Module):
    """From the features of regions, the first of which is the whole image, to a dual encoder's embeddings."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        region_features: Float[Tensor, "batch regions features"],
        region_mask: Bool[Tensor, "batch regions"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        return self.model.embed_image(region_features, region_mask)


def list_dual_encoder_networks(model: DualEncoder) -> list[ExportableNetwork]:
    """The text embedder and the image embedder; only an attention over the regions reads their mask.

    No output is called embedding, which is the name of the exported node that looks up tokens.
    """
    config = model.config
    max_tokens = config.positions - config.first_position

    def make_text(generator: torch.Generator, sizes: Sizes) -> tuple[Tensor, ...]:
        shape = (sizes["batch"], sizes["tokens"])
        missing = torch.arange(sizes["batch"]).unsqueeze(1).clamp(max=1)
        token_ids = torch.randint(0, config.vocabulary, shape, generator=generator)
        return token_ids, torch.arange(sizes["tokens"]) < sizes["tokens"] - missing

    def make_regions(generator: torch.Generator, sizes: Sizes) -> tuple[Tensor, ...]:
        shape = (sizes["batch"], sizes["regions"], config.region_feature_dim)
        features = torch.rand(shape, generator=generator)
        if config.image_pooling == "mean":
            return (features,)
        missing = torch.arange(sizes["batch"]).unsqueeze(1).clamp(max=1)
        return features, torch.arange(sizes["regions"]) < sizes["regions"] - missing

    region_axes: dict[str, tuple[str, ...]] = {"region_features": ("batch", "regions", "")}
    if config.image_pooling == "attention":
        region_axes["region_mask"] = ("batch", "regions")
    text_axes: dict[str, tuple[str, ...]] = dict.fromkeys(("token_ids", "token_mask"), ("batch", "tokens"))
    text = TextSpaceEmbedder(copy_without_parts(model, "image_head", "region_attention"))
    image_model = copy_without_parts(model, "text_head")
    for name in ("text_embeddings", "text_layers"):  # `train` sets the mode of a frozen BERT
        image_model.add_module(name, nn.Identity())
    image = RegionSpaceEmbedder(image_model)
    text_trials = [{"batch": batch, "tokens": min(tokens, max_tokens)} for batch, tokens in ((2, 7), (1, 20), (5, 12))]
    region_trials = [{"batch": batch, "regions": regions} for batch, regions in ((2, 5), (1, 37), (5, 101))]
    return [
        ExportableNetwork("text", text, TextSpaceEmbedder(model), text_axes, ("text_embedding",), make_text,
                          tuple(text_trials), {"tokens": (2, max_tokens)}),
        ExportableNetwork("image", image, RegionSpaceEmbedder(model), region_axes, ("image_embedding",), make_regions,
                          tuple(region_trials), {}),
    ]  # fmt: skip
