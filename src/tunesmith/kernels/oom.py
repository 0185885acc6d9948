"""Retry with smaller micro-batches when memory runs out. The result of a step stays the same."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tunesmith.core.errors import DoesNotFit
from tunesmith.core.progress import log
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.model.memory import free_memory, is_out_of_memory

T = TypeVar("T")


class OomRetry:
    """A micro-batch policy whose size is halved, for good, whenever memory runs out.

    Args:
        lockstep: all ranks must make the same forward passes, so a failed one cannot be retried.
    """

    def __init__(self, policy: MicroBatchPolicy, *, lockstep: bool = False) -> None:
        self.policy = policy
        self._lockstep = lockstep

    def run(self, work: Callable[[MicroBatchPolicy], T], tokens: TokenDataset, rows: Sequence[int]) -> T:
        """Call `work` with the policy, again with smaller micro-batches if memory runs out, and return its result.

        Raises:
            DoesNotFit: even a single row does not fit in memory, or `lockstep` forbids a retry.
        """
        while True:
            try:
                return work(self.policy)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._lockstep:
                    message = f"out of memory with micro-batches of {self.policy}"
                    hint = "lower train.micro_batch_tokens; sharded ranks cannot retry with smaller micro-batches"
                    raise DoesNotFit(message, hint=hint, code="out-of-memory") from error
            # Outside of `except`, because the error's traceback holds the tensors of the failed pass.
            free_memory()
            self._halve(tokens, rows)

    def _halve(self, tokens: TokenDataset, rows: Sequence[int]) -> None:
        largest = max(len(micro_batch.rows) for micro_batch in self.policy.split(tokens, rows))
        if largest == 1:
            message = f"out of memory for a single row of {int(tokens.lengths[list(rows)].max())} tokens"
            hint = "lower data.max_tokens_per_example, set train.activation_checkpointing, or use a smaller model"
            raise DoesNotFit(message, hint=hint, code="out-of-memory")
        self.policy = replace(self.policy, rows=largest // 2)
        log(f"out of memory: retrying with {largest // 2} rows per micro-batch; the steps stay the same")
