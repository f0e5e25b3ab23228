"""What a region store holds after a command has filled it, and which images were refused."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.text_files import read_json_lines

EXTRACTION_REPORT_FILE = "report.jsonl"


@dataclass(frozen=True)
class RegionStoreSummary:
    """The number of images and regions of a store.

    Args:
        path: The store.
        images: Number of its images.
        regions: Number of their regions.
        refused: Number of refused images by reason, the most frequent first; report.jsonl lists them.
    """

    path: Path
    images: int
    regions: int
    refused: Mapping[str, int]

    @property
    def num_refused(self) -> int:
        return sum(self.refused.values())

    def check(self) -> None:
        """Check that at least one image was not refused.

        Raises:
            DataError: All were.
        """
        if self.refused and not self.images:
            report = self.path / EXTRACTION_REPORT_FILE
            raise DataError(f"none of the {self.num_refused:,} images can be used; {report} lists why")


def summarize_store(store: RegionStore) -> RegionStoreSummary:
    """Counts the images, the regions and the lines of the report.

    Raises:
        DataError: The report is damaged.
    """
    report = store.folder / EXTRACTION_REPORT_FILE
    try:
        reasons = Counter(str(line["reason"]) for _, line in read_json_lines(report))
    except (DataError, TypeError, KeyError) as error:
        raise DataError(f"{report} is damaged ({error!r}): remove {store.folder} and extract it again") from error
    return RegionStoreSummary(store.folder, len(store), int(store.firsts[-1]), dict(reasons.most_common()))
