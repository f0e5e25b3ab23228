"""What goes wrong for reasons outside the library: a file, a setting, a machine. Each says what to do in one sentence.

The command line prints these without a stack trace. A mistake of a caller of the Python functions is a ValueError.
"""

from pathlib import Path


class ComodalError(Exception):
    """A fault of a file or a setting, told in one sentence."""


class MediaError(ComodalError):
    """A video, sound or picture that cannot be used; `reason` is one of a few words that a report can count."""

    def __init__(self, path: Path | str, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {reason}: {detail}")
        self.path = str(path)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["MediaError"], tuple[str, str, str]]:
        return type(self), (self.path, self.reason, self.detail)


class DataError(ComodalError):
    """A list, shard folder or data set that is missing, damaged or of another layout."""


class CheckpointError(ComodalError):
    """A model or run folder that cannot be loaded."""


class RecipeError(ComodalError):
    """Settings of a recipe that cannot work together."""
