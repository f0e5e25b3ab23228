"""Renders the audio of a world: each note of each object, then the room, the microphone's response and noise.

A timbre is a list of partials (ratio to the pitch, amplitude) chosen by the material and at random, never by the kind.
The kind only determines the notes (`world.RHYTHMS`) and their envelope.
"""

import numpy as np
from jaxtyping import Float, Inexact

from comodal.synthetic.scenes.world import Background, RandomStream, SyntheticObject, World

Samples = Float[np.ndarray, " samples"]

MATERIAL_PARTIALS = {
    "wood": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
    "metal": (1.0, 2.76, 5.40, 8.93),  # a free bar: the squares of 3.011, 5, 7, 9 (Fletcher & Rossing, bars and plates)
    "glass": (1.0, 2.25, 4.0, 6.25),  # a ring or a wine glass: the squares of 2, 3, 4, 5 (the same, glasses)
    "plastic": (1.0, 3.0, 5.0, 7.0, 9.0),  # a tube closed at one end: odd harmonics
}
ATTACK_SECONDS = 0.004


def render_world_audio(world: World, sample_rate: int) -> Samples:
    """The whole audio of a world, mono, between -1 and 1."""
    rng = world.make_generator(RandomStream.AUDIO)
    count = round(world.seconds * sample_rate)
    waveform = np.zeros(count)
    for synthetic_object in world.sounding_objects:
        waveform += synthetic_object.level * _render_notes(synthetic_object, rng, count, sample_rate)
    waveform = _add_room(waveform, world.background, rng, sample_rate)
    rms = np.sqrt(np.mean(waveform**2)) + 1e-9
    noise = _make_background_noise(world.background, rng, count, sample_rate)
    waveform = waveform + world.background.noise_level * rms * noise
    return (waveform * (float(rng.uniform(0.15, 0.9)) / (np.abs(waveform).max() + 1e-9))).astype(np.float32)


def _render_notes(synthetic_object: SyntheticObject, rng: np.random.Generator, count: int, sample_rate: int) -> Samples:
    """All notes of one object: pitch and loudness as curves in time, then one bank of partials for both."""
    ratio, loudness = np.ones(count), np.zeros(count)
    for note in synthetic_object.notes:
        first = max(round(note.start_seconds * sample_rate), 0)
        last = min(round((note.start_seconds + note.seconds) * sample_rate), count)
        if last <= first:
            continue
        progress = (np.arange(first, last) / sample_rate - note.start_seconds) / note.seconds
        ratio[first:last] = note.pitch * (note.end_pitch / note.pitch) ** np.clip(progress, 0, 1)
        loudness[first:last] = note.amplitude * compute_envelope(
            synthetic_object.kind, np.clip(progress, 0, 1), note.seconds
        )
    is_audible = loudness > 0
    phase = (2 * np.pi * np.cumsum(synthetic_object.pitch_hertz * ratio) / sample_rate)[is_audible]
    tone = np.zeros(len(phase))
    breath = rng.uniform(0.0, 0.5)
    for partial in MATERIAL_PARTIALS[synthetic_object.material]:
        amplitude, start = partial ** -rng.uniform(0.3, 1.3) * rng.uniform(0.4, 1.0), rng.uniform(0, 2 * np.pi)
        if synthetic_object.pitch_hertz * partial * ratio.max() < sample_rate / 2:
            tone += amplitude * np.sin(partial * phase + start)
    voice = np.zeros(count)
    voice[is_audible] = tone * (
        1 - breath + breath * 2 * _make_smooth_noise(rng, count, sample_rate, 150.0)[is_audible]
    )
    voice *= loudness
    return voice / (np.abs(voice).max() + 1e-9)


def compute_envelope(kind: str, progress: Samples, seconds: float) -> Samples:
    """Loudness of a note as it goes from 0 to 1."""
    attack = np.minimum(progress * seconds / ATTACK_SECONDS, 1)
    release = np.minimum((1 - progress) * seconds / ATTACK_SECONDS, 1)
    if kind == "horn":
        return compute_envelope("bell", 1 - progress, seconds)
    if kind in {"bird", "frog", "fan"}:
        return np.sin(np.pi * progress) ** 0.7
    if kind == "siren":
        return np.ones_like(progress)
    decay = {"bell": 3.5, "guitar": 2.0}.get(kind, 3.0)
    return attack * release * np.exp(-decay * progress)


def _make_smooth_noise(rng: np.random.Generator, count: int, sample_rate: int, hertz: float) -> Samples:
    """Noise that changes no faster than `hertz`, with std 1."""
    knots = rng.standard_normal(int(count / sample_rate * 2 * hertz) + 2)
    return np.interp(np.arange(count) / sample_rate * 2 * hertz, np.arange(len(knots)), knots)


def _apply_filter(waveform: Samples, gain: Inexact[np.ndarray, " bins"]) -> Samples:
    """The waveform with each frequency of its transform multiplied; circular, as in a loop."""
    return np.fft.irfft(np.fft.rfft(waveform) * gain, len(waveform))


def _add_room(waveform: Samples, background: Background, rng: np.random.Generator, sample_rate: int) -> Samples:
    """An exponentially decaying echo, then a tilt and one broad peak or dip of the microphone."""
    count = len(waveform)
    times = np.arange(count) / sample_rate
    tail = rng.standard_normal(count) * np.exp(-6.9 * times / background.echo_seconds)  # -60 dB after echo_seconds
    tail *= background.echo_level / (np.sqrt(np.sum(tail**2)) + 1e-9)
    hertz = np.maximum(np.fft.rfftfreq(count, 1 / sample_rate), 50.0)
    octaves = np.log2(hertz / 1500.0)
    center, width = rng.uniform(-2, 3), rng.uniform(0.5, 1.5)
    decibels = background.tilt_decibels * octaves / 2 + rng.uniform(-12, 12) * np.exp(
        -(((octaves - center) / width) ** 2)
    )
    return _apply_filter(waveform, (1 + np.fft.rfft(tail)) * 10 ** (decibels / 20))


def _make_background_noise(background: Background, rng: np.random.Generator, count: int, sample_rate: int) -> Samples:
    """Background noise of unit power."""
    hertz = np.maximum(np.fft.rfftfreq(count, 1 / sample_rate), 30.0)
    white = rng.standard_normal(count)
    if background.noise == "hum":
        mains = rng.choice([50.0, 60.0])
        times = np.arange(count) / sample_rate
        hum = sum(rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * mains * k * times) for k in range(1, 9))
        noise = hum + 0.2 * white
    elif background.noise == "rain":
        drops = white * (rng.random(count) < 300 / sample_rate) * 12
        noise = _apply_filter(drops + 0.3 * white, (hertz / (hertz + 1500.0)))
    elif background.noise == "wind":
        noise = _apply_filter(white, 1 / (1 + (hertz / 300.0) ** 2)) * (
            1.3 + _make_smooth_noise(rng, count, sample_rate, 0.5)
        )
    else:
        noise = _apply_filter(white, hertz**-0.5)
    return noise / (np.sqrt(np.mean(noise**2)) + 1e-9)
