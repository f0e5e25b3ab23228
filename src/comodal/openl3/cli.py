"""`openl3.cli`: OpenL3's command line, `python -m comodal.openl3 audio FILES`, with its flags and defaults.

`comodal embed` is the command of this library: it reads more formats and keeps embeddings of whole folders.
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comodal.console import print_line
from comodal.errors import ComodalError
from comodal.openl3.core import process_audio_file, process_image_file, process_video_file
from comodal.openl3.models import (
    EXTENDED_FRONTENDS,
    VALID_AUDIO_EMBEDDING_SIZES,
    VALID_CONTENT_TYPES,
    VALID_FRONTENDS,
    VALID_IMAGE_EMBEDDING_SIZES,
    VALID_INPUT_REPRS,
    load_audio_embedding_model,
    load_image_embedding_model,
)
from comodal.openl3.openl3_exceptions import OpenL3Error

MODALITIES = ("audio", "image", "video")


def positive_float(value: Any) -> float:
    """Returns a positive number; for `argparse`."""
    try:
        number = float(value)
    except (ValueError, TypeError) as error:
        raise ArgumentTypeError(f"{value!r} is not a number") from error
    if not number > 0:
        raise ArgumentTypeError(f"{value!r} is not positive")
    return number


def positive_int(value: Any) -> int:
    """Returns a positive integer; for `argparse`."""
    try:
        number = int(value)
    except (ValueError, TypeError) as error:
        raise ArgumentTypeError(f"{value!r} is not an integer") from error
    if number <= 0:
        raise ArgumentTypeError(f"{value!r} is not positive")
    return number


def get_file_list(input_list: Any) -> list[str]:
    """Returns absolute paths of the given files, and of the files in the given folders (not in their sub-folders).

    Raises:
        ArgumentTypeError: The argument is not a list of paths.
        OpenL3Error: A path does not exist.
    """
    if isinstance(input_list, str) or not isinstance(input_list, Iterable):
        raise ArgumentTypeError(f"input_list must be a list of paths, not {type(input_list)}")
    files: list[str] = []
    for item in input_list:
        path = Path(item).absolute()
        if path.is_file():
            files.append(str(path))
        elif path.is_dir():
            files += sorted(str(child) for child in path.iterdir() if child.is_file())
        else:
            raise OpenL3Error(f"Could not find {item}")
    return files


def run(
    modality: Any,
    inputs: Any,
    output_dir: str | None = None,
    suffix: str | None = None,
    input_repr: str = "mel256",
    content_type: str = "music",
    audio_embedding_size: int = 6144,
    audio_center: bool = True,
    audio_hop_size: float = 0.1,
    audio_batch_size: int = 32,
    image_embedding_size: int = 8192,
    image_batch_size: int = 32,
    audio_frontend: str = "kapre",
    overwrite: bool = False,
    verbose: bool = False,
) -> None:
    """Writes the embeddings of one file, or of a list of files and folders. Exits if the folders have no files.

    Raises:
        OpenL3Error: An argument is invalid, or a file could not be read.
    """
    if not isinstance(inputs, str | Iterable):
        raise OpenL3Error(f"Invalid input: {inputs}")
    files = [inputs] if isinstance(inputs, str) else get_file_list(inputs)
    if not files:
        print_line(f"openl3: No files found in {inputs}. Aborting.")
        sys.exit(-1)
    if modality not in MODALITIES:
        raise OpenL3Error(f"Invalid modality: {modality}")
    output: dict[str, Any] = {
        "output_dir": output_dir,
        "suffix": suffix,
        "overwrite": overwrite,
        "verbose": verbose,
    }
    audio_model = image_model = None
    if modality != "image":
        audio_model = load_audio_embedding_model(input_repr, content_type, audio_embedding_size, audio_frontend)
    if modality != "audio":
        image_model = load_image_embedding_model(input_repr, content_type, image_embedding_size)
    if modality == "audio":
        process_audio_file(
            files,
            model=audio_model,
            input_repr=input_repr,
            center=audio_center,
            hop_size=audio_hop_size,
            batch_size=audio_batch_size,
            frontend=audio_frontend,
            **output,
        )
    elif modality == "image":
        process_image_file(files, model=image_model, batch_size=image_batch_size, **output)
    else:
        process_video_file(
            files,
            audio_model=audio_model,
            image_model=image_model,
            input_repr=input_repr,
            audio_center=audio_center,
            audio_hop_size=audio_hop_size,
            audio_batch_size=audio_batch_size,
            image_batch_size=image_batch_size,
            audio_frontend=audio_frontend,
            **output,
        )
    if verbose:
        print_line("openl3: Done!")


def parse_args(args: list[str]) -> Namespace:
    """Parses the arguments of the command line."""
    parser = ArgumentParser("python -m comodal.openl3", description=main.__doc__)
    add = parser.add_argument
    add("modality", choices=MODALITIES, help="what to embed")
    add("inputs", nargs="+", help="files, or folders of files")
    add("--output-dir", "-o", help="folder of the outputs (default: the folder of each input)")
    add("--suffix", "-x", help="text appended to the names of the outputs")
    add("--input-repr", "-i", default="mel256", choices=VALID_INPUT_REPRS, help="spectrogram of the audio network")
    add("--content-type", "-c", default="music", choices=VALID_CONTENT_TYPES, help="what the network was trained on")
    add("--audio-embedding-size", "-as", type=int, default=6144, choices=VALID_AUDIO_EMBEDDING_SIZES)
    add("--no-audio-centering", "-n", action="store_true", help="timestamps are the beginnings of the windows")
    add("--audio-hop-size", "-t", type=positive_float, default=0.1, help="seconds between windows")
    add("--audio-batch-size", "-ab", type=positive_int, default=32)
    add("--image-embedding-size", "-is", type=int, default=8192, choices=VALID_IMAGE_EMBEDDING_SIZES)
    add("--image-batch-size", "-ib", type=positive_int, default=32)
    frontends = sorted({*VALID_FRONTENDS, *EXTENDED_FRONTENDS})
    add("--audio-frontend", "-af", default="kapre", choices=frontends, help="implementation of the spectrogram")
    add("--overwrite", "-ow", action="store_true", help="replace existing outputs")
    add("--quiet", "-q", action="store_true", help="print errors only")
    return parser.parse_args(args)


def main() -> None:
    """Writes OpenL3 embeddings of audio, image or video files as NAME.npz."""
    args = parse_args(sys.argv[1:])
    try:
        run(
            args.modality,
            args.inputs,
            output_dir=args.output_dir,
            suffix=args.suffix,
            input_repr=args.input_repr,
            content_type=args.content_type,
            audio_embedding_size=args.audio_embedding_size,
            audio_center=not args.no_audio_centering,
            audio_hop_size=args.audio_hop_size,
            audio_batch_size=args.audio_batch_size,
            image_embedding_size=args.image_embedding_size,
            image_batch_size=args.image_batch_size,
            audio_frontend=args.audio_frontend,
            overwrite=args.overwrite,
            verbose=not args.quiet,
        )
    except ComodalError as error:
        print_line(f"error: {error}", stderr=True)
        sys.exit(1)
