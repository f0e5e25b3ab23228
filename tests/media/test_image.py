"""Pictures are read upright and in colour, JPEG goes there and back, sizes are what was asked."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comodal.errors import MediaError
from comodal.media.image import (
    crop_image_center,
    decode_jpeg,
    encode_jpeg,
    encode_jpeg_planes,
    read_image,
    resize_short_side,
)


@pytest.fixture
def picture() -> np.ndarray:
    """Red, green, blue and grey quarters: which is where tells how the picture is turned."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:30, :40, 0] = pixels[:30, 40:, 1] = pixels[30:, :40, 2] = 200
    pixels[30:, 40:] = 128
    return pixels


# EXIF 2.32, tag 0x0112: what has to be done to what was stored, by its number.
ORIENTATIONS = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: seen.swapaxes(0, 1)[::-1, ::-1],
    8: lambda seen: np.rot90(seen, -1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_photographs_stand_upright(tmp_path: Path, picture: np.ndarray, orientation: int):
    stored = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[orientation](picture)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "photo.png"), picture)


def test_every_mode_becomes_red_green_blue(tmp_path: Path, picture: np.ndarray):
    image, path = Image.fromarray(picture), tmp_path / "picture.png"
    image.quantize(16).save(path)
    assert np.abs(read_image(path).astype(int) - picture).max() <= 1
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(path)
    assert np.array_equal(read_image(path), np.stack([grey] * 3, axis=-1))
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    assert np.array_equal(read_image(path), np.stack([grey] * 3, axis=-1))
    image.convert("1").save(path)
    assert set(np.unique(read_image(path))) == {0, 255}
    image.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "print.jpg").astype(int) - picture).mean() < 8


def test_what_is_transparent_is_black(tmp_path: Path, picture: np.ndarray):
    alpha = np.full((60, 80, 1), 255, np.uint8)
    alpha[:30] = 0
    Image.fromarray(np.concatenate([picture, alpha], axis=2)).save(tmp_path / "glass.png")
    read = read_image(tmp_path / "glass.png")
    assert not read[:30].any()
    assert np.array_equal(read[30:], picture[30:])


def test_the_first_picture_of_an_animation_is_read(tmp_path: Path, picture: np.ndarray):
    first, second = Image.fromarray(picture), Image.fromarray(255 - picture)
    first.save(tmp_path / "film.gif", save_all=True, append_images=[second])
    assert np.abs(read_image(tmp_path / "film.gif").astype(int) - picture).max() <= 2


def test_bad_files_are_refused_with_their_reason(tmp_path: Path):
    memory = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)).save(memory, "PNG")
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    files = {
        "text.png": (b"this is not a picture", "unreadable"),
        "empty.png": (b"", "unreadable"),
        "noise.jpg": (np.random.default_rng(0).bytes(3000), "unreadable"),
        "half.png": (memory.getvalue()[:40_000], "unreadable"),
        "huge.png": (b"\x89PNG\r\n\x1a\n" + chunk + memory.getvalue()[33:], "too large"),
    }
    for name, (data, reason) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MediaError) as caught:
            read_image(tmp_path / name)
        assert (caught.value.path, caught.value.reason) == (str(tmp_path / name), reason)
    with pytest.raises(MediaError, match="missing"):
        read_image(tmp_path / "nowhere.png")


def test_damaged_pictures_are_read_or_refused(tmp_path: Path, picture: np.ndarray):
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        memory = io.BytesIO()
        Image.fromarray(picture).save(memory, kind)
        for _ in range(40):
            data = bytearray(memory.getvalue())
            for place in rng.integers(0, len(data), 5):
                data[place] ^= 1 << int(rng.integers(8))
            path = tmp_path / "damaged"
            path.write_bytes(data)
            try:
                assert read_image(path).ndim == 3
            except MediaError as error:
                assert error.reason in {"unreadable", "too large"}


def test_jpeg_goes_there_and_back(picture: np.ndarray):
    decoded = decode_jpeg(encode_jpeg(picture, quality=95))
    assert np.abs(decoded.astype(int) - picture).mean() < 2
    by_pillow = np.asarray(Image.open(io.BytesIO(encode_jpeg(picture, quality=95))))
    assert np.abs(by_pillow.astype(int) - decoded).mean() < 1
    assert len(encode_jpeg(picture, quality=30)) < len(encode_jpeg(picture, quality=95))


def test_planes_become_the_jpeg_that_their_picture_would():
    red, green, blue = np.meshgrid(np.linspace(40, 200, 64), np.linspace(60, 180, 48))[0], 90.0, 120.0
    # ITU-R BT.601 in full range, as JFIF 1.02 gives it on page 3.
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    blueness = (128 - 0.168736 * red - 0.331264 * green + 0.5 * blue)[::2, ::2]
    redness = (128 + 0.5 * red - 0.418688 * green - 0.081312 * blue)[::2, ::2]
    planes = [np.rint(plane).astype(np.uint8) for plane in (luma, blueness, redness)]
    decoded = decode_jpeg(encode_jpeg_planes(*planes, quality=98)).astype(float)
    np.testing.assert_allclose(decoded[..., 0], red, atol=6)
    np.testing.assert_allclose(decoded[..., 1:], np.broadcast_to([green, blue], (48, 64, 2)), atol=6)


def test_decoding_may_shrink_but_never_below_what_is_needed():
    data = encode_jpeg(np.zeros((720, 1280, 3), np.uint8))
    assert decode_jpeg(data).shape == (720, 1280, 3)
    height, width, _ = decode_jpeg(data, min_short_side=256).shape
    assert 256 <= height < 720
    assert width / height == pytest.approx(16 / 9, rel=0.01)
    small = encode_jpeg(np.zeros((100, 120, 3), np.uint8))
    assert decode_jpeg(small, min_short_side=256).shape == (100, 120, 3)


def test_damaged_jpeg_is_refused(picture: np.ndarray):
    with pytest.raises(MediaError, match="JPEG data: unreadable"):
        decode_jpeg(b"\xff\xd8 no picture")
    with pytest.raises(MediaError, match="JPEG data: unreadable"):
        decode_jpeg(encode_jpeg(picture)[:300])
    huge = encode_jpeg(picture).replace(
        b"\xff\xc0\x00\x11\x08\x00\x3c\x00\x50", b"\xff\xc0\x00\x11\x08\xfd\xe8\xfd\xe8"
    )
    with pytest.raises(MediaError, match="JPEG data: too large"):
        decode_jpeg(huge)


@pytest.mark.parametrize(("shape", "wanted"), [((60, 80), (30, 40)), ((80, 60), (40, 30)), ((10, 25), (30, 75))])
def test_the_short_side_is_what_was_asked(shape: tuple[int, int], wanted: tuple[int, int]):
    assert resize_short_side(np.zeros((*shape, 3), np.uint8), 30).shape[:2] == wanted


def test_shrinking_keeps_the_mean_of_fine_stripes():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 200
    np.testing.assert_allclose(resize_short_side(stripes, 32)[:, 4:-4], 100, atol=4)


def test_the_centre_is_cut_out(picture: np.ndarray):
    assert np.array_equal(crop_image_center(picture, 20), picture[20:40, 30:50])
    with pytest.raises(ValueError, match="cannot be cropped"):
        crop_image_center(picture, 61)


def test_integers_that_are_not_of_16_bits_are_refused(tmp_path: Path):
    """Clipping would make them black or white."""
    for name, values in (("negative", [[-70_000, 0]]), ("large", [[0, 70_000]])):
        Image.fromarray(np.array(values, np.int32)).save(tmp_path / f"{name}.tif")
        with pytest.raises(MediaError, match=rf"{name}\.tif: unreadable: pixels are integers from {values[0][0]} to"):
            read_image(tmp_path / f"{name}.tif")
    Image.fromarray(np.array([[0, 65_535]], np.int32)).save(tmp_path / "fits.tif")
    assert read_image(tmp_path / "fits.tif")[0, :, 0].tolist() == [0, 255]
