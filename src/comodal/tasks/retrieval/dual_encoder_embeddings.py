"""Embeddings of the texts and images of a gallery by a dual encoder."""

from pathlib import Path

import numpy as np
import torch

from comodal.data.captions.caption_image_dataset import read_square
from comodal.data.image_ids import make_image_id
from comodal.data.regions.region_store import RegionWriter
from comodal.data.sources.image_folder import find_image_files
from comodal.errors import CheckpointError
from comodal.hardware import Compute
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import load_model
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.progress import track_progress
from comodal.tasks.retrieval.first_stage import GalleryEmbeddings
from comodal.tasks.retrieval.gallery import Gallery, build_gallery, check_model_inputs
from comodal.tasks.retrieval.pair_scores import group_by_size


def load_dual_encoder(path: Path) -> DualEncoder:
    """Loads a dual encoder.

    Raises:
        CheckpointError: There is none in the folder.
    """
    model = load_model(path)
    if not isinstance(model, DualEncoder):
        raise CheckpointError(f"{path}: a {type(model).__name__}, not a DualEncoder")
    return model


@torch.inference_mode()
def embed_gallery(model: DualEncoder, gallery: Gallery, compute: Compute) -> GalleryEmbeddings:
    """The embeddings of all texts and images; items of one size form a batch, so there is no padding."""
    model, dim = model.to(compute.device), model.config.embedding_dim
    texts = np.empty((len(gallery.lengths), dim), np.float32)
    images = np.empty((len(gallery.counts), dim), np.float32)
    with compute.autocast():
        for rows in group_by_size(gallery.lengths, compute.sequence_batch):
            token_ids = torch.stack([gallery.get_token_ids(row) for row in rows.tolist()]).to(compute.device)
            features = model.compute_text_features(token_ids, None)
            texts[rows] = model.embed_text_features(features).float().cpu().numpy()
        for rows in group_by_size(gallery.counts, compute.sequence_batch):
            regions = torch.stack([gallery.get_image(row).features for row in rows.tolist()]).to(compute.device)
            images[rows] = model.embed_image(regions, None).float().cpu().numpy()
    return GalleryEmbeddings(texts, images)


def embed_gallery_by(path: Path, gallery: Gallery, compute: Compute) -> GalleryEmbeddings:
    """The embeddings of another model's gallery by a dual encoder, with the dual encoder's own vocabulary.

    Raises:
        CheckpointError: There is no dual encoder in the folder.
        DataError: It does not fit the regions of the gallery.
    """
    model, tokenizer = load_dual_encoder(path), WordPieceTokenizer.read(path)
    if model.image_tower is not None:
        raise CheckpointError(f"{path} was trained on image files, and the gallery has regions: use one on regions")
    check_model_inputs(path, model.config, gallery.store, tokenizer)
    own = build_gallery(gallery.pairs, gallery.store, tokenizer, model.config, gallery.max_regions, gallery.ablate)
    embeddings = embed_gallery(model, own, compute)
    first_captions = np.unique(gallery.text_of, return_index=True)[1]  # of each text; both galleries have all captions
    return GalleryEmbeddings(embeddings.texts[own.text_of[first_captions]], embeddings.images)


@torch.inference_mode()
def write_image_features(model: DualEncoder, images: Path, out: Path, compute: Compute) -> Path:
    """Writes the features that a model's image network computes of the images of a folder, as a region store.

    Each image is one region.

    Args:
        model: A dual encoder with an image network.
        images: The folder.
        out: The store.
        compute: Device and precision.

    Raises:
        DataError: There is no such folder, or it has no images.
        MediaError: An image cannot be read.
    """
    found, size, model = find_image_files(images), model.config.image_size, model.to(compute.device)
    with RegionWriter(out, model.config.region_feature_dim, dtype="float32") as writer:
        for name in track_progress(found.names, "image features"):
            pixels = torch.from_numpy(read_square(found.root / name, size)[None].copy()).permute(0, 3, 1, 2)
            with compute.autocast():
                features = model.compute_image_features(pixels.to(compute.device)).float().cpu().numpy()
            writer.add(make_image_id(name), features, np.array([[0, 0, size, size]], np.float32), size, size)
    return out
