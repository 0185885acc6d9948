"""How fast one process of this machine sends to another: two add up numbers, as those that train do.

torchrun --standalone --nproc-per-node=2 link_speed.py        prints 10^9 bytes a second, each way
"""

import statistics
import time

import torch
from torch import distributed

_NUMBERS = 2**24  # in fp32; as many as are added up at once in training
_TIMES = 8


def main() -> None:
    """Add up, and let the first say how fast that was."""
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
        numbers[0].item()  # a GPU says that it is done before it is
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        print(4 * _NUMBERS / statistics.median(seconds[1:]) / 1e9)  # 2 (W - 1) / W = 1 of it over the link
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
