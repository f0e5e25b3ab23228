"""The order of the data: a function of the seed, whatever the workers and processes are."""

import os
import signal
from collections.abc import Sequence
from itertools import islice

import pytest
import torch

from comodal import distributed
from comodal.data.batch import AudioVisualBatch
from comodal.data.loader import Loader
from comodal.errors import DataError, MediaError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


class Numbers:
    """Ten samples an epoch that are only keys."""

    def __init__(self, bad: tuple[int, int] | None = None, error: str = "") -> None:
        self.bad = bad
        self.error = error

    def __len__(self) -> int:
        return 10

    def batch(self, places: Sequence[tuple[int, int]], /) -> AudioVisualBatch:
        if self.bad in places:
            if self.error == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("shards/train: clip 7 is damaged") if self.error == "data" else MediaError("a", "b", "c")
        size = len(places)
        keys = tuple(f"{epoch}.{index}" for epoch, index in places)
        return AudioVisualBatch(
            torch.zeros(size, 3, 1, 1, dtype=torch.uint8),
            torch.zeros(size, 1),
            torch.zeros(size) > 0,
            torch.arange(size),
            keys,
        )


def keys(loader: Loader, samples_done: int = 0, batches: int | None = None, parts: int = 1) -> list[tuple[str, ...]]:
    return [batch.keys for batch in islice(loader.iterate_batches(samples_done, parts), batches)]


def test_samples_are_counted_through_the_epochs():
    assert keys(Loader(Numbers(), 4, 0), batches=3) == [
        ("0.0", "0.1", "0.2", "0.3"),
        ("0.4", "0.5", "0.6", "0.7"),
        ("0.8", "0.9", "1.0", "1.1"),
    ]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_neither_workers_nor_a_new_start_change_the_order(workers):
    whole = keys(Loader(Numbers(), 4, 0), batches=8)
    assert keys(Loader(Numbers(), 4, workers), batches=3) + keys(Loader(Numbers(), 4, workers), 12, 5) == whole


def test_parts_and_processes_share_every_step(monkeypatch):
    steps = keys(Loader(Numbers(), 8, 0), batches=3)
    monkeypatch.setattr(distributed, "count_processes", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "get_process_rank", lambda rank=rank: rank)
        shares.append(keys(Loader(Numbers(), 8, 0), batches=6, parts=2))
    for step, expected in enumerate(steps):
        together = [key for share in shares for part in share[2 * step : 2 * step + 2] for key in part]
        assert tuple(together) == expected
    with pytest.raises(ValueError, match=r"batch_size \(6\) must be a multiple of processes x parts \(4\)"):
        keys(Loader(Numbers(), 6, 0), parts=2, batches=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_with_a_length_ends_and_begins_again(workers):
    loader = Loader(Numbers(), 4, workers, length=12)
    assert keys(loader) == keys(loader) == keys(Loader(Numbers(), 4, 0), batches=3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [("data", DataError, "shards/train: clip 7 is damaged"), ("media", MediaError, "a: b: c")],
)
def test_an_error_of_a_worker_is_the_sentence_itself(workers, error, kind, sentence):
    with pytest.raises(kind) as caught:
        keys(Loader(Numbers(bad=(0, 7), error=error), 4, workers), batches=3)
    assert str(caught.value) == sentence


def test_a_worker_that_dies_is_told():
    with pytest.raises(DataError, match=r"a data worker died .*; fewer --workers need less memory"):
        keys(Loader(Numbers(bad=(0, 7), error="killed"), 4, 1), batches=3)


def test_making_batches_draws_nothing_from_the_chance_of_the_model():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    keys(Loader(Numbers(), 4, 1), batches=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "batch_size .* got 0"),
        ((4, -1), "workers .* got -1"),
        ((4, 0, 10), r"length \(10\) must be a multiple"),
    ],
)
def test_what_makes_no_batches_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Loader(Numbers(), *arguments)
