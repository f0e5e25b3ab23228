"""Small files that declare much or unpack to much: what reading them takes, measured in a process of its own."""

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from comodal.media.tokenizer import WordPieceTokenizer
from tests.faults.test_hostile_files import chunk, field, lists, npy_header, png
from tests.support.container_files import write_tar

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
MEGABYTE = 1 << 20
MEASURE = """
import contextlib, json, sys, time, warnings
from pathlib import Path
from comodal.data.captions.caption_files import read_captions
from comodal.data.numpy_files import read_npz
from comodal.data.regions.feature_files import read_records
from comodal.data.regions.safe_unpickler import load_npy
from comodal.inference.openl3_files import read_openl3_weights
from comodal.data.sources.archive_examples import read_archive_examples
from comodal.media.image import read_image
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.convert.caffemodel import read_caffemodel
from PIL import Image
import h5py
Image.init()

def records(path): return [one.detail for one in read_records(path, "hdf5")]
def weights(path): return read_openl3_weights(path)
def vocabulary(path): return WordPieceTokenizer.read(path).encode("a dog", 12)
def captions(path):
    read = read_captions(path)
    words = WordPieceTokenizer.from_texts(caption.caption for caption in read.captions)
    return words.encode_all([caption.caption for caption in read.captions], 36)
def members(path): return [one.example.fault for one in read_archive_examples(path.parent, path.name)]

def peak(): return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1]) / 1024

for name, path in json.loads(sys.argv[1]):
    Path("/proc/self/clear_refs").write_text("5")
    before, began = peak(), time.process_time()
    try:
        said = repr(globals()[name](Path(path)))[:100]
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:300]
    print(json.dumps([name, Path(path).name, peak() - before, time.process_time() - began, said]))
"""


def deep_png(bits: int, color: int, rows: bytes, *others: bytes) -> bytes:
    """9,900 x 9,900 pixels, just below the limit, of a few kilobytes."""
    head = struct.pack(">IIBBBBB", 9_900, 9_900, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(others) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Deflated zeros, without holding them."""
    packer, block = zlib.compressobj(1), bytes(MEGABYTE)
    return b"".join(packer.compress(block) for _ in range(-(-count // MEGABYTE))) + packer.flush()


def npz(path: Path, count: int) -> Path:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("embedding.npy", "w") as entry,
    ):
        entry.write(npy_header((count,), "|u1"))
        for _ in range(count // MEGABYTE):
            entry.write(bytes(MEGABYTE))
    return path


def hdf5(path: Path, make: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "w") as file:
        make(file)
    path.with_name(f"{path.stem}_imgid2idx.json").write_text('{"1": 0}')
    return path


def write_images(folder: Path) -> dict[str, float]:
    """Each file with the megabytes that reading it may take: 98 million pixels in Pillow's four bytes and as an array
    of three with its copy are 950."""
    images = {
        "bomb.png": (png(60_000, 60_000), 50),
        "text.png": (png(8, 8, chunk(b"zTXt", b"a\0\0" + zeros(100 * MEGABYTE))), 50),
        "profile.png": (png(8, 8, chunk(b"iCCP", b"a\0\0" + zeros(100 * MEGABYTE))), 50),
        "texts.png": (png(8, 8, *[chunk(b"tEXt", b"a\0" + bytes(MEGABYTE))] * 70), 100),
        "grey16.png": (deep_png(16, 0, zeros(9_900 * (2 * 9_900 + 1))), 1250),
        "rgb.png": (deep_png(8, 2, zeros(9_900 * (3 * 9_900 + 1))), 1100),
    }
    for name, (data, _) in images.items():
        (folder / name).write_bytes(data)
    memory = io.BytesIO()
    Image.new("L", (16, 16)).save(memory, "JPEG")
    jpeg = bytearray(memory.getvalue())
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 65_000, 65_000)  # ITU-T T.81, B.2.2: lines, samples per line
    (folder / "bomb.jpg").write_bytes(jpeg)
    return {name: most for name, (_, most) in images.items()} | {"bomb.jpg": 50}


def measure(cases: list[tuple[str, Path]]) -> dict[str, tuple[float, float, str]]:
    """By the name of the file: megabytes, seconds of the processor, and what was said."""
    words = [sys.executable, "-c", MEASURE, json.dumps([(name, str(path)) for name, path in cases])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: (taken, seconds, said) for _, name, taken, seconds, said in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
def test_images(tmp_path: Path):
    most = write_images(tmp_path)
    found = measure([("read_image", tmp_path / name) for name in most])
    for name, (taken, seconds, said) in found.items():
        assert taken < most[name] and seconds < 10, name
        assert said.startswith("array" if most[name] > 1000 else "MediaError") and (most[name] > 1000 or name in said)


def many_objects(file: h5py.File) -> None:
    """Links cost few bytes each and a visit each."""
    lists(file)
    file["image_features"] = np.zeros((1, 2, 8), np.float32)
    for number in range(3_000):
        file[f"g/{number}"] = file["image_bb"]


@pytest.mark.slow
def test_arrays_and_features(tmp_path: Path):
    """HDF5 whose chunks of zeros take nothing, .npz and .npy that say more than they hold."""
    npz(tmp_path / "large.npz", 1_100 * MEGABYTE)
    with zipfile.ZipFile(tmp_path / "says.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("embedding.npy", npy_header((10**12,)))
    (tmp_path / "says.npy").write_bytes(npy_header((10**5, 10**5)) + bytes(100))
    (tmp_path / "header.npy").write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * MEGABYTE)
    chunks = {"chunks": (1, 100, 1000), "compression": "gzip", "dtype": "f4"}

    def make_wide(file: h5py.File) -> None:
        lists(file)
        file.create_dataset("image_features", (1, 10**6, 10**6), **chunks)

    wide = hdf5(tmp_path / "wide.h5", make_wide)
    links = hdf5(tmp_path / "links.h5", many_objects)
    loop = hdf5(tmp_path / "keras.h5", lambda file: file.attrs.update(layer_names=[b"a"] * 1000))
    cases = [("read_npz", tmp_path / "large.npz"), ("read_npz", tmp_path / "says.npz"), ("records", wide)]
    cases += [("load_npy", tmp_path / "says.npy"), ("load_npy", tmp_path / "header.npy"), ("records", links)]
    found = measure([*cases, ("weights", loop)])
    for name, (taken, seconds, said) in found.items():
        assert taken < 60 and seconds < 10, (name, taken, seconds)
        assert name == "links.h5" or name in said or "would take" in said, said


@pytest.mark.slow
def test_weights_of_caffe(tmp_path: Path):
    """Ten megabytes of fields of two bytes, and a layer that says 2^62 numbers."""
    (tmp_path / "fields.caffemodel").write_bytes(field(100, field(1, b"a") + field(7, b"\x08\x00" * 5_000_000)))
    shape = field(7, field(1, b"\x80" * 8 + b"\x40"))
    (tmp_path / "shape.caffemodel").write_bytes(field(100, field(1, b"a") + field(7, shape + field(5, bytes(4)))))
    found = measure([("read_caffemodel", tmp_path / f"{name}.caffemodel") for name in ("fields", "shape")])
    for name, (taken, seconds, said) in found.items():
        assert taken < 80 and seconds < 10, (name, taken, seconds)
        assert said.startswith("CheckpointError") and name in said


def test_long_words_and_members(tmp_path: Path):
    """Captions of one word: of 20 MB, and of the longest that is accepted; a vocabulary and a tar of that size."""
    word = "a" * (20 * MEGABYTE)
    captions = (word, word[:100_000], "a dog runs")
    lines = [{"image": str(number), "caption": caption} for number, caption in enumerate(captions)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "cell.csv").write_text(f"image,caption\n1.jpg,{word}\n")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", word]
    (tmp_path / "long").mkdir()
    (tmp_path / "long" / "vocab.txt").write_text("\n".join(tokens))
    write_tar(tmp_path / "long.tar", {"1.json": json.dumps({"caption": word}).encode(), "2.txt": b"a dog"})
    cases = {"long.jsonl": "captions", "cell.csv": "captions", "long": "vocabulary", "long.tar": "members"}
    found = measure([(reader, tmp_path / name) for name, reader in cases.items()])
    for name, (taken, seconds, _) in found.items():
        assert taken < 250 and seconds < 6, (name, taken, seconds)
    assert "lengths=array([3, 5]" in found["long.jsonl"][2]  # refused; [UNK] for the long word; the other caption whole
    assert found["cell.csv"][2].startswith("DataError") and "cell.csv" in found["cell.csv"][2]
    assert "'too large'" in found["long.tar"][2] and found["long.tar"][2].endswith(", None]")


def test_half_a_surrogate_pair_costs_no_vocabulary():
    words = WordPieceTokenizer.from_texts(["a \ud800 dog", "a cat"])
    assert words.decode(words.encode("a dog")) == "a dog" and words.unknown_id not in words.encode("a cat")
