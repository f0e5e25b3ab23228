"""A linear map between the features of two modalities: canonical correlation analysis, regularized.

"Objects that Sound" (section 3.3) aligns L3-Net's features in this way, as a baseline of AVE-Net. Both covariances get
a multiple of the identity, as ridge regression does. Each canonical variable is scaled by the root of its correlation,
so that the scalar product of two vectors weighs it by the correlation (Gong et al., IJCV 2014).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

MAX_ALIGNMENT_DIM = 128  # the dimension of AVE-Net's embeddings
RIDGE = 0.1  # of the mean variance of the features


class LinearAlignment(NamedTuple):
    """The projections of image and audio features into one space, and the canonical correlations."""

    image_mean: Float[np.ndarray, " image_features"]
    audio_mean: Float[np.ndarray, " audio_features"]
    image_weights: Float[np.ndarray, "image_features dim"]
    audio_weights: Float[np.ndarray, "audio_features dim"]
    correlations: Float[np.ndarray, " dim"]

    def score_all_pairs(
        self, image: Float[np.ndarray, "images image_features"], audio: Float[np.ndarray, "clips audio_features"]
    ) -> Float[np.ndarray, "images clips"]:
        """The cosine of every image with every audio."""
        first = l2_normalize_rows((image - self.image_mean) @ self.image_weights)
        second = l2_normalize_rows((audio - self.audio_mean) @ self.audio_weights)
        return first @ second.T


def l2_normalize_rows(rows: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    """Rows of length one; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def fit_linear_alignment(
    image: Float[np.ndarray, "pairs image_features"],
    audio: Float[np.ndarray, "pairs audio_features"],
    ridge: float = RIDGE,
) -> LinearAlignment:
    """Fits the projections on the features of matched pairs."""
    image_mean, audio_mean = image.mean(0), audio.mean(0)
    first, second = image - image_mean, audio - audio_mean
    first_whitening, second_whitening = compute_whitening(first, ridge), compute_whitening(second, ridge)
    cross = first_whitening.T @ (first.T @ second / len(first)) @ second_whitening
    left, correlations, right = np.linalg.svd(cross, full_matrices=False)
    dim = min(MAX_ALIGNMENT_DIM, len(correlations))
    scale = np.sqrt(correlations[:dim])
    return LinearAlignment(
        image_mean,
        audio_mean,
        first_whitening @ left[:, :dim] * scale,
        second_whitening @ right[:dim].T * scale,
        correlations[:dim],
    )


def compute_whitening(
    centered: Float[np.ndarray, "rows features"], ridge: float
) -> Float[np.ndarray, "features features"]:
    """The inverse root of the regularized covariance."""
    covariance = centered.T @ centered / len(centered)
    covariance += ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    return vectors / np.sqrt(np.maximum(values, 1e-12 * values.max())) @ vectors.T
