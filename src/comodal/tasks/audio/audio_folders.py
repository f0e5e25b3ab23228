"""Sound classification from frozen features, on class folders of audio files such as spoken digits.

The protocol is that of ESC-50 in `tasks/audio/esc50.py` (one-second windows, max-pooled conv4_2, z-scored), with one
split instead of five folds. The baselines are an untrained network, the raw spectrogram and log-mel statistics.
"""

from pathlib import Path

from comodal.flat_parameters import flatten_parameters
from comodal.media.storage.suffixes import AUDIO_SUFFIXES
from comodal.tasks.audio.audio_features import LabeledAudioFile
from comodal.tasks.audio.audio_probe import AudioDataset, AudioProbeOptions, run_audio_probe
from comodal.tasks.evaluation.class_folders import build_folder_split, list_labeled_files

AUDIO_FOLDER_PROBE = AudioProbeOptions(classifier="logistic", windows=1)


@flatten_parameters
def evaluate_audio(
    model: Path,
    data: Path,
    *,
    probe: AudioProbeOptions = AUDIO_FOLDER_PROBE,
) -> dict[str, float]:
    """Classifies audio files in class folders from frozen features; baselines are an untrained network, the raw
    spectrogram and log-mel statistics.

    Args:
        model: run folder or model folder.
        data: train/CLASS/FILE and test/ (or val/, validation/) CLASS/FILE; or CLASS/FILE alone, of which a fifth is
            the test by a hash of the file's name.
        classifier: "logistic", "svm" (linear, one-vs-all), or "mlp" (two hidden layers).
        windows: number of equally spaced windows of each clip; shorter clips are padded with silence.
        probe: the options of all evaluations of audio.

    Returns:
        Metrics: audio.trained, and of the baselines audio.untrained, audio.spectrogram and audio.log_mel, each
        with its interval.

    Raises:
        DataError: the folder has another layout, or no file of a class can be read.

    Examples:
        comodal evaluate audio --model RUN --data spoken_digits/ --out results/digits
    """
    return run_audio_probe(read_audio_folders(data), model, probe)


def read_audio_folders(data: Path) -> AudioDataset:
    """The audio files of class folders and their one split; C is chosen on a fifth of the training clips."""
    items = list_labeled_files(data, AUDIO_SUFFIXES)
    return AudioDataset(
        task="audio",
        title=data.resolve().name,
        split="test",
        source=data,
        audio_files=[LabeledAudioFile(item.path, item.name, item.category) for item in items],
        classes=tuple(sorted({item.category for item in items})),
        splits=[build_folder_split(items)],
        files={"audio": data},
    )
