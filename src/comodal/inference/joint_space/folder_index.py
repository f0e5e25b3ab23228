"""A searchable folder, as the pipelines return it; inference/image_search/ and inference/embedding_search/ make it."""

from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from comodal.media.user_inputs import to_path
from comodal.registry import import_object

FindKind = Literal["auto", "image", "audio"]


@runtime_checkable
class FolderIndex(Protocol):
    """A folder of images, audio and videos that can be searched."""

    def search(self, query: Any, top_k: int = 10) -> Any:
        """The files that match a query best, as a `SearchResult`."""


def open_folder_index(
    pipeline: Any, folder: Path | str, index: Path | str | None, find: FindKind = "auto"
) -> FolderIndex:
    """A searcher of a folder with the model of a pipeline. The searchers import the pipelines, and not the other way
    round.
    """
    open_index = import_object("comodal.inference.image_search.search_command:open_index")
    searcher: FolderIndex = open_index(to_path(folder), pipeline, None if index is None else to_path(index), find=find)
    return searcher
