"""What processes say together: with two of them (gloo), and alone."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as processes

from comodal import distributed

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")


def talk(rank: int, port: int) -> None:
    """What one of two processes says and must hear."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    assert distributed.init_distributed("cpu") == CPU
    assert (distributed.get_process_rank(), distributed.count_processes(), distributed.is_main_process()) == (
        rank,
        2,
        rank == 0,
    )
    names = {"a": 1.0 + rank, "b": 10.0} if rank else {"b": 10.0, "a": 1.0}  # the order of names is each one's own
    assert distributed.all_reduce_sum(names, CPU) == {"a": 3.0, "b": 20.0}
    assert distributed.all_reduce_mean(names, CPU) == {"a": 1.5, "b": 10.0}
    assert distributed.all_reduce_max(-5.0 + rank, CPU) == -4.0
    assert distributed.all_gather_items((f"from {rank}",) * (rank + 1)) == ("from 0", "from 1", "from 1")
    distributed.wait_for_processes()
    distributed.shut_down_distributed()
    assert distributed.count_processes() == 1


def test_two_processes_hear_each_other():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.start_processes(talk, (port,), nprocs=2, start_method="fork")


def test_one_process_hears_itself():
    assert distributed.init_distributed("cpu") == CPU
    assert (distributed.get_process_rank(), distributed.count_processes(), distributed.is_main_process()) == (
        0,
        1,
        True,
    )
    assert distributed.all_reduce_sum({"a": 1.0}, CPU) == distributed.all_reduce_mean({"a": 1.0}, CPU) == {"a": 1.0}
    assert distributed.all_reduce_max(2.0, CPU) == 2.0
    assert distributed.all_gather_items(("x",)) == ("x",)
    distributed.wait_for_processes()
    distributed.shut_down_distributed()
