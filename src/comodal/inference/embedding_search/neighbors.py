"""The nearest vectors of a query: exact, or from compressed vectors whose best are scored exactly.

Exact search is one matrix product. Above EXACT_BELOW vectors, product quantization with 4 bits for every two dimensions
(faiss, extra `ann`) scans 1/16 of the bytes, and the best candidates are scored with their full vectors. Product
quantization: Jegou et al., "Product Quantization for Nearest Neighbor Search", TPAMI 2011. The scan in registers: Andre
et al., "Quicker ADC", TPAMI 2021. Unlike a graph it is built in seconds to minutes, new vectors are appended, and
recall does not collapse for vectors without clusters.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load, save

from comodal.console import print_line
from comodal.data.output_folder import lock_output_folder
from comodal.errors import DataError
from comodal.files import write_bytes_atomically
from comodal.inference.embedding_search.appended_rows import append_rows, explain_write_errors, read_appended_rows

EXACT_BELOW = 100_000  # vectors
MIN_CANDIDATES = 1_000  # of the compressed vectors, scored exactly
CANDIDATES_PER_RESULT = 20
TRAINING_VECTORS, TRAINING_ITERATIONS = 16_384, 10  # of 16 centroids for every two dimensions
CHECKED_CODES, MIN_SAME_CODES = 256, 0.9  # rounding may change a code
RETRAIN_FACTOR = 8  # the centroids are fitted again when there are this many times as many vectors


class NearestVectors(NamedTuple):
    """Indices and scores (scalar products) of the nearest vectors, the nearest first."""

    indices: Int64[np.ndarray, "found"]
    scores: Float32[np.ndarray, "found"]


@dataclass(frozen=True)
class ExactNeighbors:
    """The scalar products of all vectors with the query."""

    vectors: Float32[np.ndarray, "rows dim"]

    def find(self, query: Float32[np.ndarray, "dim"], count: int) -> NearestVectors:
        """The `count` vectors with the highest scalar products with a query; fewer if there are no more."""
        return select_nearest(self.vectors @ query, np.arange(len(self.vectors)), count)


@dataclass(frozen=True)
class CompressedNeighbors:
    """A scan of compressed vectors, whose best are scored with the full vectors.

    Args:
        vectors: The full vectors.
        scan: faiss's index of the compressed vectors.
    """

    vectors: Float32[np.ndarray, "rows dim"]
    scan: Any

    def find(self, query: Float32[np.ndarray, "dim"], count: int) -> NearestVectors:
        """As `ExactNeighbors.find`, among the best of the compressed vectors."""
        num_candidates = min(len(self.vectors), max(MIN_CANDIDATES, CANDIDATES_PER_RESULT * count))
        candidates = self.scan.search(pad_to_even(query[None]), num_candidates)[1][0]
        candidates = np.sort(candidates[candidates >= 0])  # equal scores keep the order of the rows
        return select_nearest(self.vectors[candidates] @ query, candidates, count)


Neighbors: TypeAlias = ExactNeighbors | CompressedNeighbors


def select_nearest(
    scores: Float32[np.ndarray, "candidates"], indices: Int64[np.ndarray, "candidates"], count: int
) -> NearestVectors:
    """The best candidates, the best first; equal scores keep their order."""
    if count < len(scores):
        threshold = -np.partition(-scores, count - 1)[count - 1]
        kept = np.flatnonzero(scores >= threshold)
        scores, indices = scores[kept], indices[kept]
    order = np.argsort(-scores, kind="stable")[:count]
    return NearestVectors(indices[order], scores[order])


def build_neighbors(
    prefix: Path, vectors: Float32[np.ndarray, "rows dim"], exact_below: int = EXACT_BELOW
) -> Neighbors:
    """Exact search of a small index; above it the compressed vectors, which are stored next to the vectors.

    Args:
        prefix: Path of the index without suffix; PREFIX.centroids and PREFIX-codes.* are written.
        vectors: Of length one.
        exact_below: Number of vectors from which on they are compressed.

    Raises:
        DataError: The compressed vectors are damaged or cannot be written.
    """
    if len(vectors) < exact_below:
        return ExactNeighbors(vectors)
    faiss = import_faiss()
    if faiss is None:
        print_line(
            f"{len(vectors):,} vectors are searched exactly; pip install 'comodal[ann]' for approximate search",
            stderr=True,
        )
        return ExactNeighbors(vectors)
    with explain_write_errors(prefix.parent), lock_output_folder(prefix.parent):
        quantizer, codes = update_codes(faiss, prefix, vectors)
    flat = faiss.IndexPQ(quantizer.d, quantizer.M, quantizer.nbits, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(faiss.vector_to_array(quantizer.centroids), flat.pq.centroids)
    faiss.copy_array_to_vector(codes.ravel(), flat.codes)
    flat.ntotal, flat.is_trained = len(codes), True
    return CompressedNeighbors(vectors, faiss.IndexPQFastScan(flat))


def update_codes(
    faiss: Any, prefix: Path, vectors: Float32[np.ndarray, "rows dim"]
) -> tuple[Any, UInt8[np.ndarray, "rows bytes"]]:
    """The quantizer and the codes of all vectors; those of new vectors are appended to the stored ones."""
    dim = vectors.shape[1] + vectors.shape[1] % 2
    quantizer = faiss.ProductQuantizer(dim, dim // 2, 4)
    centroids_path, manifest = prefix.with_suffix(".centroids"), prefix.with_name(f"{prefix.name}-codes.json")
    dtype = np.dtype([("code", "u1", (quantizer.code_size,))])
    stored, centroids = np.zeros(0, dtype), read_centroids(centroids_path, quantizer.M)
    if centroids is None or len(vectors) >= RETRAIN_FACTOR * centroids.num_vectors:
        manifest.unlink(missing_ok=True)  # codes of other centroids are invalid
        print_line(f"compressing {len(vectors):,} vectors for approximate search", stderr=True)
        centroids = fit_centroids(faiss, quantizer, vectors)
        write_bytes_atomically(
            centroids_path, save({"centroids": centroids.values, "num_vectors": np.array([centroids.num_vectors])})
        )
    else:
        stored = read_appended_rows(manifest, dtype)
    faiss.copy_array_to_vector(centroids.values.ravel(), quantizer.centroids)
    if not are_codes_of(quantizer, stored["code"], vectors):
        stored = stored[:0]
    if len(stored) == len(vectors):
        return quantizer, stored["code"]
    added = np.empty(len(vectors) - len(stored), dtype)
    added["code"] = quantizer.compute_codes(pad_to_even(vectors[len(stored) :]))
    append_rows(manifest, added, len(stored))
    return quantizer, np.concatenate([stored["code"], added["code"]])


def are_codes_of(
    quantizer: Any, codes: UInt8[np.ndarray, "stored bytes"], vectors: Float32[np.ndarray, "rows dim"]
) -> bool:
    """Whether codes are those of the first vectors, judged by a sample: the vectors may have been built again."""
    if not len(codes) or len(codes) > len(vectors):
        return False
    rows = np.unique(np.linspace(0, len(codes) - 1, CHECKED_CODES).astype(np.int64))
    is_same = (quantizer.compute_codes(pad_to_even(vectors[rows])) == codes[rows]).all(axis=1)
    return bool(is_same.mean() > MIN_SAME_CODES)


class Centroids(NamedTuple):
    """The centroids of every two dimensions, and the number of vectors of the index when they were fitted."""

    values: Float32[np.ndarray, "pairs 16 2"]
    num_vectors: int


def read_centroids(path: Path, pairs: int) -> Centroids | None:
    """The stored centroids; None if there are none.

    Raises:
        DataError: They are damaged.
    """
    if not path.exists():
        return None
    try:
        tensors = load(path.read_bytes())
        return Centroids(tensors["centroids"].reshape(pairs, 16, 2), int(tensors["num_vectors"][0]))
    except (SafetensorError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it; the next search builds it again") from error


def fit_centroids(faiss: Any, quantizer: Any, vectors: Float32[np.ndarray, "rows dim"]) -> Centroids:
    """The centroids, fitted by k-means on a sample of the vectors."""
    rows = np.random.default_rng(0).permutation(len(vectors))[:TRAINING_VECTORS]
    quantizer.cp.niter, quantizer.cp.min_points_per_centroid = TRAINING_ITERATIONS, 1
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # many small problems: threads cost more than they save
    quantizer.train(pad_to_even(vectors[rows]))
    faiss.omp_set_num_threads(threads)
    values = faiss.vector_to_array(quantizer.centroids).reshape(quantizer.M, 16, 2)
    return Centroids(values, len(vectors))


def pad_to_even(vectors: Float32[np.ndarray, "rows dim"]) -> Float32[np.ndarray, "rows even_dim"]:
    """Vectors with an even number of dimensions; the added one is 0."""
    return np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, 1))) if vectors.shape[1] % 2 else vectors)


def import_faiss() -> Any | None:
    """faiss, whose wrapper classes cause deprecation warnings in new versions of Python; None without the extra."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            import faiss
        except ImportError:
            return None
    return faiss
