"""The plain reader that the benchmark compares with gives the same batch, so that its time is that of the same work."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from comodal.data.captions.caption_dataset import CaptionDataset, MaskingConfig
from comodal.data.captions.caption_files import Caption
from comodal.media.tokenizer import WordPieceTokenizer
from tests.support.small_regions import some_images, write_store

pytest.importorskip("lmdb")
from tests.support.plain_regions import PlainReader, write_plain

COUNTS, MAX_REGIONS = [3, 6, 1, 4], 4  # the second image has too many


def test_the_plain_reader_and_the_captions_give_the_same_batch(tmp_path: Path):
    store = write_store(tmp_path / "store", some_images(COUNTS))
    write_plain(store, tmp_path / "plain.lmdb")
    captions = [(Caption((f"image{row}",), "a thing", None, str(row)), row) for row in range(len(COUNTS))]
    nothing = MaskingConfig(token_probability=0.0, region_probability=0.0)
    words = WordPieceTokenizer.from_texts(["a thing"])
    batch = CaptionDataset(captions, store, words, 0, 4, max_regions=MAX_REGIONS, masking=nothing).batch(
        [(0, index) for index in range(4)]
    )
    images = [key.split(",")[0].removeprefix("image ") for key in batch.keys]
    reader = PlainReader(tmp_path / "plain.lmdb", MAX_REGIONS)
    features, places = reader.batch(images)
    reader.close()
    assert_close(batch.spatials, places, atol=1e-6, rtol=0)
    assert_close(batch.region_features[:, 1:], features[:, 1:], atol=0, rtol=0)
    whole = [row for row, image in enumerate(images) if COUNTS[int(image[-1])] <= MAX_REGIONS]
    assert len(whole) == 3
    # row 0 of an image that loses regions is another mean: ours is of the regions that are there
    assert_close(batch.region_features[whole, 0], features[whole, 0], atol=1e-6, rtol=1e-6)
    assert np.isfinite(torch.cat([batch.region_features.flatten(), features.flatten()]).numpy()).all()
