"""OpenL3 without TensorFlow: a drop-in replacement. Change `import openl3` to `import comodal.openl3 as openl3`.

The functions are in `core`, the networks in `models`, the command line in `cli`, as in OpenL3 0.4.2.
"""

from comodal.openl3 import models
from comodal.openl3.core import (
    get_audio_embedding,
    get_image_embedding,
    get_output_path,
    preprocess_audio,
    process_audio_file,
    process_image_file,
    process_video_file,
)
from comodal.openl3.models import settings
from comodal.openl3.openl3_exceptions import OpenL3Error
from comodal.openl3.openl3_warnings import OpenL3Warning

__all__ = [
    "OpenL3Error",
    "OpenL3Warning",
    "get_audio_embedding",
    "get_image_embedding",
    "get_output_path",
    "models",
    "preprocess_audio",
    "process_audio_file",
    "process_image_file",
    "process_video_file",
    "settings",
]
