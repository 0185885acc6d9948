"""When checkpoints are written: beside training, from a copy, where that has room; else training waits."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith.core.errors import Interrupted
from tunesmith.core.rundir import RunDir
from tunesmith.distributed.failure import delay_peer_exit
from tunesmith.distributed.process_group import ProcessGroup, peer_failures_as_errors
from tunesmith.estimate.hardware import available_memory_gib
from tunesmith.model.adapters import trained_parameters
from tunesmith.model.dtensor import local_shard
from tunesmith.tasks.tokenizer import TokenizerAdapter
from tunesmith.train.checkpoint import Snapshot, State, is_training_sharded, prune, save_checkpoint, take_snapshot
from tunesmith.train.optim import optimizer_tensors

# How much of what is free beside the processor a copy may take.
_FOR_A_COPY = 1 / 16


class AsyncSaver:
    """Writes the checkpoints of a run, one after the other.

    Args:
        keep: how many of the latest stay, beside the best.
        group: the processes that train. The first writes, and all where what is trained is divided.
    """

    def __init__(
        self,
        run: RunDir,
        model: Any,
        optimizer: torch.optim.Optimizer,
        tokenizer: TokenizerAdapter,
        card: dict[str, Any],
        group: ProcessGroup,
        *,
        keep: int,
    ) -> None:
        self._run, self._model, self._optimizer = run, model, optimizer
        self._codec, self._card, self._keep = tokenizer, card, keep
        self._divided = is_training_sharded(model)
        self._group = group.for_thread() if self._divided else group
        self._threads = ThreadPoolExecutor(1, "saver")
        self._under_way: Future[None] | None = None

    def save(self, state: State) -> None:
        """Save this step: at once, or beside the steps that follow.

        Raises:
            DoesNotFit: the disk is full; this, or the save before this one, is not there.
        """
        self.wait()
        if not self._divided and not self._group.is_rank0:
            return
        beside = self._copy_gib() <= _FOR_A_COPY * available_memory_gib() / self._group.rank_info.local_world_size
        with peer_failures_as_errors():
            taken = take_snapshot(state, self._model, self._optimizer, self._group, copied=beside)
        self._under_way = self._threads.submit(self._write, taken)
        if not beside:
            self.wait()

    def check(self) -> None:
        """Raise what went wrong in the thread that writes."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what is being written is whole; raise what went wrong."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    @contextmanager
    def finish_on_exit(self) -> Iterator[None]:
        """Let nothing be half written on leaving, however that is."""
        try:
            yield
            self.wait()
        except Interrupted:  # who goes on from what is kept must know that it is not
            self.wait()
            raise
        finally:
            self._threads.shutdown()

    def _write(self, taken: Snapshot) -> None:
        with delay_peer_exit(), peer_failures_as_errors():
            save_checkpoint(self._run, taken, self._codec, self._card, self._group)
        if self._group.is_rank0:
            prune(self._run, keep=self._keep, step=taken.state.step, best_step=taken.state.best_step)

    def _copy_gib(self) -> float:
        weights = [weight for _, weight in trained_parameters(self._model)]
        # Of divided weights the first puts together all.
        whole = weights if self._group.is_rank0 else []
        parts = map(local_shard, optimizer_tensors(self._model, self._optimizer).values())
        return sum(tensor.numel() * tensor.element_size() for tensor in (*whole, *parts)) / 2**30
