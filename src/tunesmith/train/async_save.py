"""Write checkpoints in a thread, from a copy of the state, while training continues; without memory for it, wait."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from torch.optim import Optimizer

from tunesmith.core.errors import Interrupted
from tunesmith.core.rundir import RunDir
from tunesmith.distributed.failure import writing_lock
from tunesmith.distributed.process_group import peer_failures_as_errors
from tunesmith.estimate.hardware import available_memory_gib
from tunesmith.model.dtensor import local_shard
from tunesmith.model.trainable import trained_parameters
from tunesmith.train.checkpoint import (
    ModelOrigin,
    Snapshot,
    State,
    is_training_sharded,
    prune,
    save_checkpoint,
    take_snapshot,
)
from tunesmith.train.loop import Setup
from tunesmith.train.optim import optimizer_tensors

# The fraction of the available CPU memory that a copy may take.
_COPY_FRACTION = 1 / 16


class AsyncSaver:
    """Writes the checkpoints of a run, one at a time.

    Of the ranks that train, rank 0 writes; if trained weights are sharded, all ranks do.
    """

    def __init__(self, setup: Setup, run: RunDir, optimizer: Optimizer, origin: ModelOrigin) -> None:
        self._run, self._model, self._optimizer = run, setup.model, optimizer
        self._origin, self._keep = origin, setup.recipe.train.keep_checkpoints
        self._is_sharded = is_training_sharded(setup.model)
        self._group = setup.group.for_thread() if self._is_sharded else setup.group
        self._executor = ThreadPoolExecutor(1, "saver")
        self._pending: Future[None] | None = None

    def save(self, state: State) -> None:
        """Save this step: in the background if there is memory for a copy, otherwise before returning.

        Raises:
            DoesNotFit: the disk is full; this checkpoint, or the one before, was not written.
        """
        self.wait()
        if not self._is_sharded and not self._group.is_rank0:
            return
        available_gib = available_memory_gib() / self._group.rank_info.local_world_size
        in_background = self._copy_gib() <= _COPY_FRACTION * available_gib
        with peer_failures_as_errors():
            snapshot = take_snapshot(state, self._model, self._optimizer, self._group, copy=in_background)
        self._pending = self._executor.submit(self._write, snapshot)
        if not in_background:
            self.wait()

    def check(self) -> None:
        """Raise the error of a background write that has failed."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the pending checkpoint is complete; raise its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @contextmanager
    def finish_on_exit(self) -> Iterator[None]:
        """Finish the pending write at the end of the block, even if the block raises."""
        try:
            yield
            self.wait()
        except Interrupted:  # a failed save must be reported, because the resumed run relies on it
            self.wait()
            raise
        finally:
            self._executor.shutdown()

    def _write(self, snapshot: Snapshot) -> None:
        with writing_lock, peer_failures_as_errors():
            save_checkpoint(self._run, snapshot, self._origin, self._group)
        if self._group.is_rank0:
            prune(self._run, keep=self._keep, step=snapshot.state.step, best_step=snapshot.state.best_step)

    def _copy_gib(self) -> float:
        """Return the size of a copy of the trained weights and the optimizer state on this rank."""
        weights = [weight for _, weight in trained_parameters(self._model)]
        # Rank 0 gathers the full weights, even of sharded models.
        full = weights if self._group.is_rank0 else []
        shards = map(local_shard, optimizer_tensors(self._model, self._optimizer).values())
        return sum(tensor.numel() * tensor.element_size() for tensor in (*full, *shards)) / 2**30
