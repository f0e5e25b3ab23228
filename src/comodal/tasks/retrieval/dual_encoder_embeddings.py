"""Embeddings of the texts and images of a gallery by a dual encoder."""

from pathlib import Path

import numpy as np
import torch

from comodal.errors import CheckpointError
from comodal.hardware import Compute
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import load_model
from comodal.models.dual_encoder.dual_encoder import DualEncoder
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
    check_model_inputs(path, model.config, gallery.store, tokenizer)
    own = build_gallery(gallery.pairs, gallery.store, tokenizer, model.config, gallery.max_regions, gallery.ablate)
    embeddings = embed_gallery(model, own, compute)
    first_captions = np.unique(gallery.text_of, return_index=True)[1]  # of each text; both galleries have all captions
    return GalleryEmbeddings(embeddings.texts[own.text_of[first_captions]], embeddings.images)
