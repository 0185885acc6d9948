"""Measure the speed between two processes of this machine with an all-reduce, as in training.

torchrun --standalone --nproc-per-node=2 link_speed.py        prints 10^9 bytes per second, each way
"""

import statistics
import time

import torch
from torch import distributed

_NUMBERS = 2**24  # in fp32; the size of a bucket in training
_TIMES = 8


def main() -> None:
    """Time the all-reduce; rank 0 prints the speed."""
    gpu = torch.cuda.is_available()
    distributed.init_process_group("nccl" if gpu else "gloo")
    rank = distributed.get_rank()
    if gpu:
        torch.cuda.set_device(rank)
    numbers = torch.ones(_NUMBERS, device="cuda" if gpu else "cpu")
    seconds = []
    for _ in range(_TIMES):
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(numbers)
        numbers[0].item()  # GPU operations are asynchronous
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        print(
            4 * _NUMBERS / statistics.median(seconds[1:]) / 1e9
        )  # an all-reduce sends 2 (W - 1) / W = 1 times the data
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
