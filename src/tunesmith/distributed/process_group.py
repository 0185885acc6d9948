"""The processes that train one model together: the only code that talks to other ranks.

Every process computes the gradients of its share of a step's rows. Of weights that every process has whole they are
added up once a step, when all passes are done, so a process may divide its share as its own memory wants; of those that
are kept in parts `fsdp.py` takes care. Every process then takes the same step. Only the first writes.
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
from tunesmith.distributed.failure import BRIEFLY, FailureChannel
from tunesmith.estimate.hardware import cores
from tunesmith.model.adapters import trained_parameters
from tunesmith.model.dtensor import is_dtensor
from tunesmith.recipe.changes import changed_keys

T = TypeVar("T")
# Gradients are added up in pieces of about so many numbers, which bounds the memory that this takes.
_NUMBERS_AT_ONCE = 2**24
# Where processes that end say why, once they have met, and how long they wait for each other.
_farewells: list[FailureChannel] = []
_patience: list[timedelta] = []
# Where this process writes its stacks, and after how many seconds without a word with the others.
_stacks: list[tuple[TextIO, float]] = []


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes of a run. One that is alone adds up, waits for and asks nobody.

    `channel` is what they talk over where that is not what all others do.
    """

    rank_info: RankInfo = field(default_factory=RankInfo)
    channel: Any = None

    @property
    def is_rank0(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank_info.is_rank0

    @property
    def is_many(self) -> bool:
        """Whether there are others."""
        return self.rank_info.world_size > 1

    def beside(self) -> "ProcessGroup":
        """Return the same processes for a thread that talks while this one does. All have to ask."""
        if not self.is_many:
            return self
        with _translate_peer_failures():
            return replace(self, channel=distributed.new_group(timeout=_patience[-1], backend="gloo"))

    def share(self, rows: Sequence[int], lengths: Any) -> list[int]:
        """Return the rows that are this process's work: about as many tokens as every other has."""
        return (
            assign_ranks(rows, lengths, self.rank_info.world_size)[self.rank_info.rank] if self.is_many else list(rows)
        )

    def sum(self, *values: float) -> list[float]:
        """Return the sum of each value over all processes, in fp64."""
        if not self.is_many:
            return list(values)
        # On the CPU: NCCL would wait for all that the GPU still has to do.
        found = torch.tensor(values, dtype=torch.float64)
        with _translate_peer_failures():
            distributed.all_reduce(found, group=self.channel)
        return found.tolist()

    def sum_gradients(self, model: Any) -> None:
        """Add up the gradients of all processes, where they are whole; a weight that no row has reached keeps none.

        In fp32 or more, as the masters are; the sums are the same numbers in every process.
        """
        if not self.is_many:
            return
        weights = [weight for _, weight in trained_parameters(model) if not is_dtensor(weight)]
        reached = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
        with _translate_peer_failures():
            distributed.all_reduce(reached, distributed.ReduceOp.MAX)
        for piece in _pieces([w for w, there in zip(weights, reached.tolist(), strict=True) if there]):
            for weight in piece:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
            flat = torch.cat([weight.grad.flatten() for weight in piece if weight.grad is not None])
            with _translate_peer_failures():
                distributed.all_reduce(flat)
            for weight, found in zip(piece, torch.split(flat, [weight.numel() for weight in piece]), strict=True):
                weight.grad = found.view_as(weight)

    def gather(self, value: T) -> list[T]:
        """Return the value of every process, in the order of their ranks."""
        if not self.is_many:
            return [value]
        found: list[Any] = [None] * self.rank_info.world_size
        with _translate_peer_failures():
            distributed.all_gather_object(found, value, group=self.channel)
        return found

    def require_equal(self, stated: dict[str, Any]) -> None:
        """Raise RecipeError in all processes if one has other inputs (JSON values), or another version of tunesmith."""
        if not self.is_many:
            return
        seen = self.gather({"tunesmith": version("tunesmith"), **stated})
        for rank, theirs in enumerate(seen):
            if differ := sorted(changed_keys(seen[0], theirs)):
                raise RecipeError(
                    f"process {rank} has other inputs than the first: {', '.join(differ)}",
                    hint="give all machines the same files and the same tunesmith",
                )

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Let the first process do something, and return in all what it returns, or raise what it raises."""
        if not self.is_many:
            return work()
        told: list[Any] = [None, None]
        if self.is_rank0:
            try:
                told[0] = work()
            except Exception as error:
                told[1] = error
        with _translate_peer_failures():
            distributed.broadcast_object_list(told, group=self.channel)
        if told[1] is not None:
            raise told[1]
        result: T = told[0]
        return result

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.gather(None)

    def check(self) -> None:
        """Raise Interrupted in all processes if a signal came to any."""
        if signal := max(self.gather(interrupt.requested_signal())):
            raise interrupt.interrupted_error(signal)


def current_group() -> ProcessGroup:
    """Return the group that this process has joined, or that of a process alone."""
    return ProcessGroup(rank_info()) if distributed.is_initialized() else ProcessGroup()


class Meeting:
    """Where processes meet for the stages that all work at: the first says which is next, the others wait for it."""

    def __init__(self, rank_info: RankInfo, store: Any, patience: timedelta) -> None:
        self.group = ProcessGroup(rank_info)
        self._store, self._patience, self._count = store, patience, 0

    def say(self, stage: str) -> None:
        """Tell the others which stage is next; nothing means that there is none."""
        self._store.set(f"stage-{self._count}", stage)
        self._count += 1

    def next(self) -> str:
        """Return what the first process says next; that may take as long as what it does alone.

        Raises:
            ProcessLost: the first process is gone.
        """
        key = f"stage-{self._count}"
        self._count += 1
        while True:
            with _translate_peer_failures():
                try:
                    self._store.wait([key], self._patience)
                    return bytes(self._store.get(key)).decode()
                except distributed.DistStoreError:  # not yet
                    continue

    @contextlib.contextmanager
    def work(self, stacks: Path) -> Iterator[None]:
        """Do what all do: where the others are not heard of for long, say in a file what every thread is at.

        A little before waiting ends, and in every process: that of one that hangs tells where it does.
        """
        with contextlib.ExitStack() as held:
            held.callback(_remove_empty, stacks)
            file = held.enter_context(stacks.open("a", encoding="utf-8"))  # those of a turn before stay
            _stacks.append((file, 0.9 * self._patience.total_seconds()))
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                _stacks.pop()


def _remove_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        path.unlink()


@contextlib.contextmanager
def meeting(rank_info: RankInfo, timeout_minutes: float = 30) -> Iterator[Meeting]:
    """Meet the other processes of a run.

    Args:
        place: of this process.
        timeout_minutes: how long to wait for the others, here and whenever something is shared.

    Raises:
        ProcessLost: they do not come, or one leaves.
    """
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(rank_info.local_rank % torch.cuda.device_count())  # srun may show each its own GPU alone
    if (threads := _cores_for_this_rank(rank_info)) is not None:
        torch.set_num_threads(threads)
    patience = timedelta(minutes=timeout_minutes)
    with _translate_peer_failures():
        store, _, _ = next(rendezvous(rank_info.init_method, rank_info.rank, rank_info.world_size, timeout=patience))
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo", store=PrefixStore("group", store), timeout=patience,
            rank=rank_info.rank, world_size=rank_info.world_size,
        )  # fmt: skip
    farewell = FailureChannel(rank_info, store, patience)
    _farewells.append(farewell)
    _patience.append(patience)
    try:
        with farewell.heard():
            yield Meeting(rank_info, PrefixStore("meeting", store), patience)
    except ProcessLost:
        distributed.destroy_process_group()  # nobody is left to tell, or nobody was told
        raise
    except Exception as error:
        farewell.tell(error)
        distributed.destroy_process_group()  # the others see this process leave, and look for why
        farewell.wait_for_all(patience)
        raise
    else:
        distributed.destroy_process_group()
        farewell.wait_for_all(BRIEFLY)
    finally:
        _farewells.pop()
        _patience.pop()


@contextlib.contextmanager
def _translate_peer_failures() -> Iterator[None]:
    """Say in our words that another process is gone, which shows as a connection that ends or as silence."""
    for file, seconds in _stacks[-1:]:
        faulthandler.dump_traceback_later(seconds, file=file)  # in place of the one before
    try:
        yield
    except RuntimeError as error:
        for farewell in _farewells[-1:]:
            if (why := farewell.told()) is not None:
                raise why from error
        told = (str(error).splitlines() or [""])[0][:160]
        here = rank_info()
        where = f"rank {here.rank} of {here.world_size}"
        if "EADDRINUSE" in str(error):
            raise ProcessLost(
                f"another program has the port at which the processes meet: {told}", where=where,
                hint="start again; MASTER_PORT names another port",
            ) from error  # fmt: skip
        raise ProcessLost(
            f"another process of this run is gone or hangs: {told}", where=where,
            hint="what went wrong is told by the process that ended first; run the same command again to go on",
        ) from error  # fmt: skip


@contextlib.contextmanager
def peer_failures_as_errors() -> Iterator[None]:
    """Say the same around passes of a model in parts, in which torch itself talks to the others; leave other errors."""
    try:
        yield
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        with _translate_peer_failures():
            raise


def is_peer_failure(error: BaseException) -> bool:
    """Say whether an error is that of a word with other processes."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def cores_per_rank(rank_info: RankInfo) -> int:
    """Return with how many cores a process computes: one that is alone has all, though torch may take half of them."""
    alone = rank_info.world_size == 1 and "OMP_NUM_THREADS" not in os.environ
    return cores() if alone else torch.get_num_threads()


def _cores_for_this_rank(rank_info: RankInfo) -> int | None:
    """Return how many cores this process may take: what Slurm gave it, or its part of the machine's.

    None, where the user has said how many threads there are to be. torchrun says 1 if the user says nothing.
    """
    by_torchrun, said = rank_info.init_method == "env://", os.environ.get("OMP_NUM_THREADS")
    if said is not None and not (by_torchrun and said == "1"):
        return None
    given = None if by_torchrun else os.environ.get("SLURM_CPUS_PER_TASK")
    return int(given) if given else max(1, cores() // rank_info.local_world_size)


def _pieces(weights: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Yield weights of one dtype in pieces of about so many numbers as are added up at once."""
    piece: list[torch.nn.Parameter] = []
    for weight in weights:
        full = sum(one.numel() for one in piece) + weight.numel() > _NUMBERS_AT_ONCE
        if piece and (full or weight.dtype != piece[0].dtype):
            yield piece
            piece = []
        piece.append(weight)
    if piece:
        yield piece
