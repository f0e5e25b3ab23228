"""Whether a picture or a video and a sound belong together, on real files, and what is said of those that cannot."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from comodal.analysis.heatmaps import resize_maps
from comodal.cli.program import main
from comodal.errors import DataError, MediaError
from comodal.inference.match import cut_audio_windows, match, match_files
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.synthetic.scenes.audio_synthesis import render_world_audio
from comodal.synthetic.scenes.media_writers import write_video_file as write_synthetic_video
from comodal.synthetic.scenes.rendering import Painter
from comodal.synthetic.scenes.world import Purpose, make_world
from tests.support.self_contained import check_page
from tests.support.synthetic_media import tone, write_video

RATE, SIDE, SECONDS = 48_000, 64, 2.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("run")
    save_model(L3Net(make_small_l3net_config(2, 56)), folder / "model", {})  # 8/7 of 56 is 64: frames keep their pixels
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real mp4 as the synthetic writes it."""
    world = make_world(0, Purpose.VIDEO, 3, seconds=SECONDS)
    painter, path = Painter(world, SIDE), tmp_path_factory.mktemp("video") / "bell.mp4"
    frames = (painter.paint_frame(number / 10) for number in range(int(10 * SECONDS)))
    write_synthetic_video(path, frames, 10.0, render_world_audio(world, RATE), RATE, SIDE)
    return path


def decoded(video: Path) -> tuple[list[np.ndarray], np.ndarray]:
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(video)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return frames, sound


def test_images_and_audio_in_memory_are_matched_as_their_files(run: Path, tmp_path: Path):
    """A path as text, a PIL image, an array and a tensor; a stereo file and its samples in both layouts."""
    rng, model = np.random.default_rng(0), L3Net.from_pretrained(run)
    pixels, stereo = rng.integers(0, 256, (64, 80, 3), np.uint8), rng.uniform(-0.5, 0.5, (2 * RATE, 2))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    wanted = match_files(model, tmp_path / "a.png", tmp_path / "a.wav")
    tensor = torch.from_numpy(stereo.T.astype(np.float32))
    for image in (str(tmp_path / "a.png"), Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        for sound, rate in ((str(tmp_path / "a.wav"), None), (stereo, RATE), (tensor, RATE)):
            found = match_files(model, image, sound, sample_rate=rate)
            assert found.probability == pytest.approx(wanted.probability, abs=1e-5)
            assert len(found.windows) == len(wanted.windows) == 2
    with pytest.raises(TypeError, match="got NoneType for an image"):
        match_files(model, None, stereo, sample_rate=RATE)
    with pytest.raises(ValueError, match="needs its sample rate"):
        match_files(model, pixels, stereo)


def test_a_video_is_matched_with_its_own_sound_second_by_second(run: Path, video: Path):
    found, model = match([video], run), L3Net.from_pretrained(run)
    frames, sound = decoded(video)
    assert [window.seconds for window in found.windows] == [0.5, 1.5]
    expected = []
    for window, second in zip(found.windows, (0, 1), strict=True):
        image = torch.from_numpy(frames[10 * second + 5].copy()).permute(2, 0, 1)[None]
        heard = torch.from_numpy(sound[second * RATE : (second + 1) * RATE].copy())[None]
        with torch.inference_mode():
            expected.append(float(model(image, heard).logits.softmax(-1)[0, 1]))
        assert window.probability == pytest.approx(expected[-1], abs=0.01)
    assert found.probability == pytest.approx(np.mean(expected), abs=0.01)


def test_the_place_is_the_highest_point_of_the_map(run: Path, video: Path):
    window = match_files(L3Net.from_pretrained(run), video).windows[0]
    numbers = f"seconds={window.seconds}, probability={window.probability}, x={window.x}, y={window.y}"
    assert repr(window) == f"MatchWindow({numbers})"
    row, column = divmod(int(resize_maps(torch.from_numpy(window.position_margins)[None], (SIDE, SIDE)).argmax()), SIDE)
    assert (window.x, window.y) == (
        pytest.approx((column + 0.5) / SIDE, abs=1e-4),
        pytest.approx((row + 0.5) / SIDE, abs=1e-4),
    )


def test_another_hop_gives_other_windows_and_the_same_where_they_meet(run: Path, video: Path):
    model = L3Net.from_pretrained(run)
    third, whole = match_files(model, video, hop_seconds=1 / 3), match_files(model, video)
    assert [round(window.seconds, 3) for window in third.windows] == [0.167, 0.5, 0.833, 1.167, 1.5, 1.833]
    assert third.windows[1].probability == whole.windows[0].probability
    assert third.windows[4].probability == whole.windows[1].probability


def test_a_picture_is_matched_with_each_second_of_a_sound(run: Path, video: Path, tmp_path: Path):
    frames, sound = decoded(video)
    Image.fromarray(frames[5]).save(tmp_path / "bell.png")
    soundfile.write(tmp_path / "bell.wav", sound, RATE, subtype="FLOAT")
    model = L3Net.from_pretrained(run)
    still = match_files(model, tmp_path / "bell.png", tmp_path / "bell.wav")
    moving = match_files(model, video)
    assert [window.seconds for window in still.windows] == [0.5, 1.5]
    assert still.windows[0].probability == pytest.approx(moving.windows[0].probability, abs=1e-3)
    own = match_files(model, video, video)
    assert [window.probability for window in own.windows] == [window.probability for window in moving.windows]


def test_the_command_prints_a_table_or_json(run: Path, video: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["match", str(video), "--model", str(run), "--precision", "fp32", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == match_files(L3Net.from_pretrained(run), video).as_json()
    assert set(told["windows"][0]) == {"seconds", "probability", "x", "y"}
    assert main(["match", str(video), str(video), "--model", str(run), "--hop-seconds", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "bell.mp4 and its own audio: probability of correspondence 0." in shown
    assert "4 of 4 windows" in shown


def test_drawings_are_a_picture_or_a_page_that_stands_alone(run: Path, video: Path, tmp_path: Path):
    match([video], run, out=tmp_path / "deep" / "where.png")
    with Image.open(tmp_path / "deep" / "where.png") as drawn:
        assert drawn.format == "PNG"
    found = match([video], run, hop_seconds=0.5, out=tmp_path / "where.html")
    page = check_page((tmp_path / "where.html").read_text())
    assert page.tags.count("img") == 1
    assert [row[:2] for row in page.rows()] == [[f"{m.seconds:.2f}", f"{m.probability:.3f}"] for m in found.windows]
    with pytest.raises(ValueError, match=r"where\.svg: give a \.png or a \.html file"):
        match([video], run, out=tmp_path / "where.svg")


def test_silence_is_no_verdict(run: Path, tmp_path: Path, video: Path):
    loud = tone(2.0, RATE, silent_seconds=1.0)
    soundfile.write(tmp_path / "half.wav", loud, RATE)
    found = match([video, tmp_path / "half.wav"], run, out=tmp_path / "half.html")
    assert found.windows[0][1:5] == (None, None, None, None)
    assert found.probability == found.windows[1].probability
    assert check_page((tmp_path / "half.html").read_text()).rows()[0][1] == "silent"
    soundfile.write(tmp_path / "none.wav", 0 * loud, RATE)
    with pytest.raises(MediaError, match=r"none.wav: silent: the audio never exceeds -60 dB"):
        match([video, tmp_path / "none.wav"], run)


def test_odd_media_end_in_a_sentence(run: Path, tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]):
    soundfile.write(tmp_path / "short.wav", tone(0.4, RATE, 0.0), RATE)
    Image.new("RGB", (40, 30)).save(tmp_path / "p.png")
    Image.new("RGB", (80, 4)).save(tmp_path / "thin.png")
    (tmp_path / "notes.txt").write_text("hello")
    write_video(tmp_path / "mute.mp4")
    told = {
        ("p.png",): "p.png: an image has no audio; give an audio file as the second file",
        ("mute.mp4",): "mute.mp4: no audio stream: no audio stream in the file; give an audio file as the second file",
        ("short.wav", "p.png"): "short.wav: an audio file; give the image or video first, then the audio",
        ("p.png", "short.wav"): "short.wav: too short: a prediction needs 1 s of audio",
        ("p.png", "mute.mp4"): "mute.mp4: no audio stream: no audio stream in the file",
        ("thin.png", str(video)): "thin.png: too large: 80 x 4 pixels are narrower than 1 : 16",
        ("notes.txt",): "notes.txt: ",
        ("nowhere.mp4",): "nowhere.mp4 does not exist",
        ("p.png", "nowhere.wav"): "nowhere.wav does not exist",
        ("p.png", "p.png", "p.png"): "3 files; match takes an image or a video, and audio",
    }
    for files, sentence in told.items():
        status = main(["match", *(str(tmp_path / name) for name in files), "--model", str(run)])
        said = capsys.readouterr().err
        assert status == 1, files
        assert sentence in said, said
    with pytest.raises(ValueError, match="hop_seconds"):
        match_files(L3Net.from_pretrained(run), video, hop_seconds=0.0)
    with pytest.raises(DataError, match="an image has no audio"):
        match([tmp_path / "p.png"], run)


@pytest.mark.parametrize("sizes", [[100], [7], [1, 30, 3]])
def test_windows_are_cut_out_of_a_stream_whatever_its_blocks(sizes: list[int]):
    sound, blocks, place = np.arange(100, dtype=np.float32), [], 0
    while place < 100:
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(sound[place : place + size])
        place += size
    found = list(cut_audio_windows(blocks, [0, 0, 5, 60, 75, 81, 89, 90], 20))
    # from 81 on they end with the sound, and the middle of the last one is where the sound ends
    assert [piece.tolist() for piece in found] == [list(range(k, k + 20)) for k in (0, 0, 5, 60, 75, 80, 80)]


def test_a_sound_may_lack_a_twentieth_of_one_window():
    assert [piece.tolist() for piece in cut_audio_windows([np.ones(19, np.float32)], [0, 10], 20)] == [
        [1.0] * 19 + [0.0]
    ]
    assert list(cut_audio_windows([np.ones(18, np.float32)], [0], 20)) == []
