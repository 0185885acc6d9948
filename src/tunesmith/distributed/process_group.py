"""The process group that trains one model: collectives, and joining and leaving the group.

Each rank computes the gradients of its share of a step's rows. Gradients of replicated weights are summed once per
step, after all micro-batches, so each rank can choose its own micro-batch size. Sharded weights are handled by
`fsdp.py`. All ranks then take the same optimizer step. Only rank 0 writes files.
"""

import contextlib
import faulthandler
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from tunesmith.core import interrupt
from tunesmith.core.dist_env import RankInfo, rank_info
from tunesmith.core.errors import ProcessLost, RecipeError
from tunesmith.data.sampler import assign_ranks
from tunesmith.distributed.failure import SHORT_TIMEOUT, FailureChannel
from tunesmith.estimate.hardware import available_cores
from tunesmith.model.dtensor import is_dtensor
from tunesmith.model.trainable import trained_parameters
from tunesmith.recipe.changes import changed_keys

T = TypeVar("T")
# Gradients are all-reduced in buckets of about this many elements, which bounds the extra memory.
BUCKET_ELEMENTS = 2**24
# The failure channel of the group that this process has joined.
_failure_channels: list[FailureChannel] = []
# The file for this process's stack traces, and how many seconds a collective may hang before they are written.
_stack_dumps: list[tuple[TextIO, float]] = []


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The ranks of a run. With one rank, every method returns at once, without communication.

    `channel` is the torch process group for collectives on CPU tensors; None means torch's default group.
    """

    rank_info: RankInfo = field(default_factory=RankInfo)
    channel: Any = None

    @property
    def is_rank0(self) -> bool:
        """Whether this rank writes the files."""
        return self.rank_info.is_rank0

    @property
    def is_distributed(self) -> bool:
        """Whether there are other ranks."""
        return self.rank_info.world_size > 1

    def for_thread(self) -> "ProcessGroup":
        """Return the same ranks with a separate channel, for use in a thread. All ranks must call this."""
        if not self.is_distributed:
            return self
        with _translate_peer_failures():
            return replace(self, channel=distributed.new_group(timeout=_failure_channels[-1].timeout, backend="gloo"))

    def local_rows(self, rows: Sequence[int], lengths: Any) -> list[int]:
        """Return this rank's share of the rows; all ranks get about the same number of tokens."""
        if not self.is_distributed:
            return list(rows)
        return assign_ranks(rows, lengths, self.rank_info.world_size)[self.rank_info.rank]

    def sum(self, *values: float) -> list[float]:
        """Return the sum of each value over all ranks, in fp64."""
        if not self.is_distributed:
            return list(values)
        # On the CPU: NCCL would wait for all queued GPU work.
        sums = torch.tensor(values, dtype=torch.float64)
        with _translate_peer_failures():
            distributed.all_reduce(sums, group=self.channel)
        return sums.tolist()

    def sum_gradients(self, model: Any) -> None:
        """Sum the gradients of replicated weights over all ranks. A weight without a gradient on any rank keeps none.

        The sums are in the dtype of the master weights, fp32 or more, and identical on all ranks.
        """
        if not self.is_distributed:
            return
        weights = [weight for _, weight in trained_parameters(model) if not is_dtensor(weight)]
        has_gradient = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
        with _translate_peer_failures():
            distributed.all_reduce(has_gradient, distributed.ReduceOp.MAX)
        for bucket in gradient_buckets([w for w, has in zip(weights, has_gradient.tolist(), strict=True) if has]):
            own = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in bucket]
            flat = torch.cat([gradient.flatten() for gradient in own])
            with _translate_peer_failures():
                distributed.all_reduce(flat)
            for weight, gradient in zip(bucket, torch.split(flat, [weight.numel() for weight in bucket]), strict=True):
                weight.grad = gradient.view_as(weight)

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.rank_info.world_size
        with _translate_peer_failures():
            distributed.all_gather_object(values, value, group=self.channel)
        return values

    def require_equal(self, inputs: dict[str, Any]) -> None:
        """Raise RecipeError on all ranks if one has different inputs (JSON values) or another version of tunesmith."""
        by_rank = self.all_gather({"tunesmith": version("tunesmith"), **inputs})
        for rank, theirs in enumerate(by_rank):
            if keys := sorted(changed_keys(by_rank[0], theirs)):
                message = f"the inputs of rank {rank} differ from those of rank 0: {', '.join(keys)}"
                hint = "give all machines the same files and the same version of tunesmith"
                raise RecipeError(message, hint=hint, code="ranks-differ")

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Call `work` on rank 0, and return its result, or raise its error, on all ranks."""
        if not self.is_distributed:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_rank0:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        with _translate_peer_failures():
            distributed.broadcast_object_list(outcome, group=self.channel)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def barrier(self) -> None:
        """Wait until all ranks call this."""
        self.all_gather(None)

    def raise_if_interrupted(self) -> None:
        """Raise Interrupted on all ranks if any of them received a signal."""
        if signal := max(self.all_gather(interrupt.requested_signal())):
            raise interrupt.interrupted_error(signal)


def current_group() -> ProcessGroup:
    """Return the group that this process has joined, or a group of one rank."""
    return ProcessGroup(rank_info()) if distributed.is_initialized() else ProcessGroup()


class StageCoordinator:
    """Starts the stages that all ranks work on: rank 0 announces the next stage, and the other ranks wait for it."""

    def __init__(self, rank_info: RankInfo, store: Any, timeout: timedelta) -> None:
        self.group = ProcessGroup(rank_info)
        self._store, self._timeout, self._count = store, timeout, 0

    def announce(self, stage: str) -> None:
        """Announce the next stage to the other ranks; an empty string means that no stage follows."""
        self._store.set(f"stage-{self._count}", stage)
        self._count += 1

    def next_stage(self) -> str:
        """Return the stage that rank 0 announces next. Rank 0 may first work alone for any length of time.

        Raises:
            ProcessLost: rank 0 is gone.
        """
        key = f"stage-{self._count}"
        self._count += 1
        while True:  # until it is announced
            with _translate_peer_failures(), contextlib.suppress(distributed.DistStoreError):
                self._store.wait([key], self._timeout)
                return bytes(self._store.get(key)).decode()

    @contextlib.contextmanager
    def dump_stacks_on_hang(self, path: Path) -> Iterator[None]:
        """Write the stack of every thread to `path` if a collective hangs inside the block.

        Every rank writes, shortly before the collective times out. The stacks of a hanging rank show where it hangs.
        """
        with path.open("a", encoding="utf-8") as file:  # keeps the stacks of earlier starts
            _stack_dumps.append((file, 0.9 * self._timeout.total_seconds()))
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                _stack_dumps.pop()
                if path.stat().st_size == 0:
                    path.unlink()


@contextlib.contextmanager
def join_process_group(rank_info: RankInfo, timeout_minutes: float = 30) -> Iterator[StageCoordinator]:
    """Join the other ranks of a run, and leave with them.

    Args:
        timeout_minutes: how long joining, and later each collective, may take.

    Raises:
        ProcessLost: not all ranks joined, or one left.
    """
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(rank_info.local_rank % torch.cuda.device_count())  # srun may show each rank only its GPU
    _set_threads(rank_info)
    timeout = timedelta(minutes=timeout_minutes)
    with _translate_peer_failures():
        store, _, _ = next(rendezvous(rank_info.init_method, rank_info.rank, rank_info.world_size, timeout=timeout))
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo", store=PrefixStore("group", store), timeout=timeout,
            rank=rank_info.rank, world_size=rank_info.world_size,
        )  # fmt: skip
    failure_channel = FailureChannel(rank_info, store, timeout)
    _failure_channels.append(failure_channel)
    try:
        with failure_channel.failure_watchdog():
            yield StageCoordinator(rank_info, PrefixStore("meeting", store), timeout)
    except ProcessLost:
        distributed.destroy_process_group()  # no rank waits for this error
        raise
    except Exception as error:
        failure_channel.send(error)
        distributed.destroy_process_group()  # closes the connections, so the other ranks look for the error
        failure_channel.wait_for_all(timeout)
        raise
    else:
        distributed.destroy_process_group()
        failure_channel.wait_for_all(SHORT_TIMEOUT)
    finally:
        _failure_channels.pop()


@contextlib.contextmanager
def _translate_peer_failures() -> Iterator[None]:
    """Raise the error of a failed rank instead of torch's, which is only a closed connection or a timeout."""
    for file, seconds in _stack_dumps[-1:]:
        faulthandler.dump_traceback_later(seconds, file=file)  # replaces the timer of the collective before
    try:
        yield
    except RuntimeError as error:
        for failure_channel in _failure_channels[-1:]:
            if (peer_error := failure_channel.receive()) is not None:
                raise peer_error from error
        details = (str(error).splitlines() or [""])[0][:160]
        info = rank_info()
        where = f"rank {info.rank} of {info.world_size}"
        if "EADDRINUSE" in str(error):
            message = f"another program uses the port at which the ranks meet: {details}"
            hint = "start again, or set MASTER_PORT to another port"
            raise ProcessLost(message, where=where, hint=hint, code="port-in-use") from error
        message = f"another process of this run is gone or hangs: {details}"
        hint = "see the output of the process that ended first; run the same command again to resume"
        raise ProcessLost(message, where=where, hint=hint) from error


@contextlib.contextmanager
def peer_failures_as_errors() -> Iterator[None]:
    """Translate peer failures in code that lets torch communicate, such as a forward pass of a sharded model.

    Other errors pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        with _translate_peer_failures():
            raise


def is_peer_failure(error: BaseException) -> bool:
    """Return whether torch raised this error in communication with other ranks."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def cores_per_rank(rank_info: RankInfo) -> int:
    """Return the number of cores that a rank computes with. A single process has all, even if torch uses only half."""
    alone = rank_info.world_size == 1 and "OMP_NUM_THREADS" not in os.environ
    return available_cores() if alone else torch.get_num_threads()


def _set_threads(rank_info: RankInfo) -> None:
    """Compute with this rank's cores from Slurm, or its share of the machine's cores, unless the user has decided.

    The user decides by OMP_NUM_THREADS, which torchrun sets to 1 if the user does not.
    """
    by_torchrun, omp_threads = rank_info.init_method == "env://", os.environ.get("OMP_NUM_THREADS")
    if omp_threads is None or (by_torchrun and omp_threads == "1"):
        allocated = None if by_torchrun else os.environ.get("SLURM_CPUS_PER_TASK")
        torch.set_num_threads(int(allocated or max(1, available_cores() // rank_info.local_world_size)))


def gradient_buckets(weights: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Yield consecutive weights of one dtype in buckets of at most BUCKET_ELEMENTS, or one larger weight."""
    bucket: list[torch.nn.Parameter] = []
    for weight in weights:
        is_full = sum(member.numel() for member in bucket) + weight.numel() > BUCKET_ELEMENTS
        if bucket and (is_full or weight.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(weight)
    if bucket:
        yield bucket
