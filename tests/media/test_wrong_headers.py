"""Sounds whose headers are wrong: what is read is what FFmpeg decodes, and what is missing is said."""

import io
import struct
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from comodal.data.sources.file_batches import FileJob, attempt_job, plan_file_jobs
from comodal.errors import MediaError, MediaWarning
from comodal.media.audio import read_audio
from comodal.media.storage.suffixes import AUDIO_SUFFIXES
from tests.support.paths import FIXTURES
from tests.support.synthetic_media import tone, write_video

MEDIA = FIXTURES / "media"
RATE = 44_100


def sweep(seconds: float) -> np.ndarray:
    """A tone that rises, and bursts of noise for encoders of variable bit rate."""
    time = np.arange(round(seconds * RATE)) / RATE
    noise = 0.3 * np.random.default_rng(0).standard_normal(len(time)) * (np.sin(2 * np.pi * time) > 0.7)
    return (0.4 * np.sin(2 * np.pi * (300 + 200 * time) * time) + noise).clip(-1, 1).astype(np.float32)


def decoded(path: Path) -> np.ndarray:
    """What FFmpeg decodes, one frame after another."""
    pieces = []
    with av.open(str(path)) as container:
        for packet in container.demux(audio=0):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            pieces += [frame.to_ndarray().reshape(-1) for frame in frames]
    samples = np.concatenate(pieces)
    return samples / (2.0 ** (8 * samples.itemsize - 1)) if samples.dtype.kind == "i" else samples


def mp3(path: Path, seconds: float, *, quality: str = "4", xing: str = "1") -> Path:
    with av.open(str(path), "w", format="mp3", options={"write_xing": xing}) as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono", options={"flags": "+qscale"})
        stream.codec_context.global_quality = 118 * int(quality)  # FF_QP2LAMBDA
        sound = sweep(seconds)
        for first in range(0, len(sound), 1152):
            frame = av.AudioFrame.from_ndarray(sound[None, first : first + 1152], "fltp", "mono")
            frame.sample_rate, frame.pts = RATE, first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def same(path: Path, seconds: float | None = None, rate: int = RATE) -> list[str]:
    """Compares with FFmpeg, and returns what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_audio(path, rate)
    expected = decoded(path)
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert seconds is None or len(found) / rate == pytest.approx(seconds, abs=0.06)
    assert all(isinstance(warning.message, MediaWarning) and str(path) in str(warning.message) for warning in caught)
    return [str(warning.message) for warning in caught]


def test_a_truncated_mp3_ends_where_its_data_end(tmp_path: Path):
    path = mp3(tmp_path / "cut.mp3", 6.0)
    assert same(path, 6.0) == []
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 19 // 20])  # 0.3 s are missing
    assert any("truncated" in note for note in same(path))
    path.write_bytes(data[: len(data) // 2])
    (said,) = same(path)[:1]
    assert "truncated" in said and "its header declares 6.0" in said
    assert 1.5 < len(read_quietly(path)) / RATE < 4.5


def read_quietly(path: Path, rate: int = RATE) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        return read_audio(path, rate)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_an_mp3_whose_header_counts_other_frames_has_its_own_length(tmp_path: Path, factor: float):
    path = mp3(tmp_path / "wrong.mp3", 4.0)
    data = bytearray(path.read_bytes())
    place = max(data.find(b"Xing"), data.find(b"Info")) + 8
    frames = struct.unpack_from(">I", data, place)[0]
    struct.pack_into(">I", data, place, int(frames * factor))
    path.write_bytes(data)
    said = same(path, 4.0)
    assert (len(said) == 1 and "truncated" in said[0]) if factor > 1 else not said


def write_chain(path: Path, subtype: str, rates: tuple[int, int]) -> Path:
    """Ogg files of 1 and 2 s, one after the other (RFC 3533, section 4)."""
    parts = []
    for seconds, rate in zip((1.0, 2.0), rates, strict=True):
        memory = io.BytesIO()
        soundfile.write(memory, tone(seconds, rate), rate, format="OGG", subtype=subtype)
        parts.append(memory.getvalue())
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize(("subtype", "rate"), [("VORBIS", RATE), ("OPUS", 48_000)])
def test_a_chain_of_oggs_is_what_ffmpeg_decodes(tmp_path: Path, subtype: str, rate: int):
    path = write_chain(tmp_path / "chain.ogg", subtype, (rate, rate))
    read, expected = read_audio(path, rate), decoded(path)
    assert len(read) / rate == pytest.approx(3.0, abs=0.02)
    np.testing.assert_allclose(read, expected, atol=1e-6)


def test_a_chain_of_oggs_that_ffmpeg_cannot_follow_is_told(tmp_path: Path):
    path = write_chain(tmp_path / "chain.ogg", "VORBIS", (44_100, 22_050))
    with pytest.warns(MediaWarning, match="chain.ogg: damaged: its audio cannot be read after 1"):
        assert len(read_audio(path, 44_100)) / 44_100 == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_is_read_to_its_end(tmp_path: Path, length: int):
    path = tmp_path / "piped.wav"
    soundfile.write(path, sweep(2.0), RATE)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"data") + 4, length)
    struct.pack_into("<I", data, 4, length)
    path.write_bytes(data)
    same(path, 2.0)


def test_a_flac_from_a_pipe_is_read_to_its_end(tmp_path: Path):
    path = tmp_path / "piped.flac"
    soundfile.write(path, sweep(2.0), RATE)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # FLAC format, STREAMINFO: 36 bits of the total number of samples; 0 is unknown
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert same(path, 2.0) == []


@pytest.mark.parametrize("name", ["cut.wav", "cut.flac", "cut.aiff"])
def test_a_truncated_file_is_read_to_its_end_and_told(tmp_path: Path, name: str):
    soundfile.write(tmp_path / name, sweep(4.0), RATE)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    said = same(tmp_path / name)
    assert len(said) >= 1 and "truncated" in said[0] and "declares 4.00 s" in said[0]


def test_alac_in_caf_and_gsm_in_wav_are_read(tmp_path: Path):
    path = tmp_path / "alac.caf"
    soundfile.write(path, sweep(2.0), RATE, format="CAF", subtype="ALAC_16")
    found = read_audio(path, RATE)
    np.testing.assert_allclose(found[: 2 * RATE], sweep(2.0), atol=1e-4)
    assert len(found) == 2 * RATE
    assert len(read_audio(MEDIA / "gsm.wav", 8000)) == 8000


@pytest.mark.parametrize("name", ["damaged.mp3", "damaged.flac", "damaged.wav"])
def test_a_damaged_middle_costs_the_damaged_part_alone(tmp_path: Path, name: str):
    path = tmp_path / name
    if name.endswith("mp3"):
        mp3(path, 4.0)
    else:
        soundfile.write(path, sweep(4.0), RATE)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    same(path)
    assert 3.4 < len(read_quietly(path)) / RATE < 4.1


@pytest.mark.parametrize("lost", [3000, 20_000])
def test_a_flac_without_its_middle_has_a_note(tmp_path: Path, lost: int):
    """The header counts the samples, so that fewer are a loss, however few."""
    noise = 0.3 * np.random.default_rng(0).normal(size=3 * RATE)
    soundfile.write(tmp_path / "whole.flac", noise, RATE)
    data = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2] + data[len(data) // 2 + lost :])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_audio(tmp_path / "whole.flac", RATE)) == 3 * RATE
    with pytest.warns(MediaWarning, match=r"cut\.flac: damaged: 0\.\d\d s"):
        assert 2 * RATE < len(read_audio(tmp_path / "cut.flac", RATE)) < 3 * RATE


OGG = {"cut.ogg": "VORBIS", "cut.opus": "OPUS"}


def write_ogg(path: Path) -> bytes:
    """4 s of noise, in pages of at most 1 s."""
    noise = 0.1 * np.random.default_rng(0).normal(size=4 * 48_000)
    soundfile.write(path, noise, 48_000, format="OGG", subtype=OGG[path.name])
    return path.read_bytes()


@pytest.mark.parametrize("name", OGG)
@pytest.mark.parametrize("place", ["half", "within the last page", "before the last page"])
def test_a_truncated_ogg_is_read_to_its_end_and_told(tmp_path: Path, name: str, place: str):
    """Its header declares no length; the last page lacks (RFC 3533, section 6: the flag 0x04)."""
    data = write_ogg(tmp_path / name)
    assert same(tmp_path / name, rate=48_000) == []
    last = data.rindex(b"OggS")
    end = {"half": len(data) // 2, "within the last page": last + 200, "before the last page": last}[place]
    (tmp_path / name).write_bytes(data[:end])
    (note,) = same(tmp_path / name, rate=48_000)
    seconds = len(read_quietly(tmp_path / name, 48_000)) / 48_000
    assert 0.5 < seconds < 3.7 and f"truncated: its audio ends at {seconds:.2f} s" in note


@pytest.mark.parametrize("name", OGG)
@pytest.mark.parametrize("how", ["zeroed", "cut out", "one bit"])
def test_an_ogg_without_its_middle_has_a_note(tmp_path: Path, name: str, how: str):
    data = bytearray(write_ogg(tmp_path / name))
    middle = len(data) // 2
    if how == "one bit":
        data[middle] ^= 1
    else:
        data[middle : middle + 2000] = bytes(2000) if how == "zeroed" else b""
    (tmp_path / name).write_bytes(data)
    (note,) = same(tmp_path / name, rate=48_000)
    lost = 4 - len(read_quietly(tmp_path / name, 48_000)) / 48_000
    assert 0.4 < lost < 2.1 and f"are lost ({lost:.2f} s)" in note


def test_the_report_of_a_command_has_the_note(tmp_path: Path):
    path = mp3(tmp_path / "cut.mp3", 6.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    outcome = attempt_job(FileJob(path, ()), lambda job: len(read_audio(job.source, RATE)))
    assert outcome.rows and not outcome.error_message
    assert any(note.startswith("truncated") for note in outcome.notes)


def test_a_folder_is_searched_for_every_kind_that_can_be_read_and_the_rest_is_counted(tmp_path: Path):
    names = ["a.wav", "b.MP2", "c.mka", "d.caf", "e.wv", "f.w64", "notes.txt", "cover.jpg", "g.npz"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    found = plan_file_jobs([tmp_path], AUDIO_SUFFIXES, None, ("",))
    assert {job.source.name for job in found.jobs} == set(names[:6])
    assert found.other_suffixes == {".txt": 1, ".jpg": 1}


AUDIO = {
    "mp2": "mp2", "mka": "aac", "caf": "pcm_s16le", "wv": "wavpack", "w64": "pcm_s16le", "ac3": "ac3", "eac3": "eac3",
    "tta": "tta", "wma": "wmav2", "m4b": "aac", "aifc": "pcm_s16be", "oga": "flac", "weba": "libopus", "voc": "pcm_u8",
}  # fmt: skip


@pytest.mark.parametrize("suffix", AUDIO)
def test_audio_of_every_suffix_is_read(tmp_path: Path, suffix: str):
    formats = {"m4b": "mp4", "aifc": "aiff", "weba": "webm", "mka": "matroska"}
    path = tmp_path / f"a.{formats.get(suffix, suffix)}"
    with av.open(str(path), "w", format={"mka": "matroska", "oga": "ogg", "wma": "asf"}.get(suffix)) as container:
        stream = container.add_stream(AUDIO[suffix], rate=48000, layout="mono")
        coder = stream.codec_context
        coder.bit_rate = 96_000
        resampler = av.AudioResampler(coder.format, "mono", 48000, coder.frame_size or None)
        sound = tone(2, 48000)
        for first in range(0, len(sound), 1024):
            frame = av.AudioFrame.from_ndarray(sound[None, first : first + 1024], "flt", "mono")
            frame.sample_rate, frame.pts = 48000, first
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    path = path.rename(tmp_path / f"a.{suffix}")
    assert path.suffix in AUDIO_SUFFIXES
    heard = read_audio(path, 48000)
    assert np.argmax(np.abs(heard) > 0.25) / 48000 == pytest.approx(0.5, abs=0.05)


def test_sound_of_a_video_is_not_a_sound_of_its_own(tmp_path: Path):
    write_video(tmp_path / "a.mp4", sound=tone(1, 48000))
    (tmp_path / "b.wav").write_bytes(b"x")
    assert plan_file_jobs([tmp_path], AUDIO_SUFFIXES, None, ("",)).other_suffixes == {".mp4": 1}


@pytest.mark.parametrize("valid_bits", [24, 20])
def test_samples_of_24_bits_in_32_are_not_samples_of_24_bits(tmp_path: Path, valid_bits: int):
    """FFmpeg reads them without the padding: as a third more samples, or as floats."""
    expected = (2 ** (valid_bits - 1) * 0.9 * sweep(0.5)).astype(np.int64)
    data = (expected << (32 - valid_bits)).astype("<i4").tobytes()
    guid = bytes.fromhex("0100000000001000800000aa00389b71")
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 4 * RATE, 4, 32, 22, valid_bits, 4) + guid
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    path = tmp_path / "padded.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    np.testing.assert_allclose(read_audio(path, RATE), expected / 2 ** (valid_bits - 1), atol=1e-6)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.warns(MediaWarning, match=r"padded\.wav: truncated: its audio ends at 0\.48 s"):
        assert len(read_audio(path, RATE)) == len(expected) - 1000


def test_a_file_without_samples_is_refused(tmp_path: Path):
    path = tmp_path / "empty.au"
    path.write_bytes(b".snd" + struct.pack(">IIIII", 1 << 20, 2000, 3, RATE, 1) + bytes(2000))
    with pytest.raises(MediaError, match=r"empty\.au: no audio stream: no sample"):
        read_audio(path, RATE)


def test_padded_samples_of_a_core_audio_file_are_refused(tmp_path: Path):
    """Neither FFmpeg, which reads a third more samples, nor libsndfile supports them."""
    form, path = struct.pack(">d4sIIIII", RATE, b"lpcm", 2, 4, 1, 1, 24), tmp_path / "padded.caf"
    head = b"caff\0\1\0\0desc" + struct.pack(">q", len(form)) + form
    path.write_bytes(head + b"data" + struct.pack(">qI", 4 + 4000, 0) + bytes(4000))
    with pytest.raises(MediaError, match=r"padded\.caf: unreadable"):
        read_audio(path, RATE)
