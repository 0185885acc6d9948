"""Going on with smaller batches when memory does not suffice. What is computed stays the same."""

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
    """A policy of rows that is halved whenever memory does not suffice, and stays so.

    Args:
        lockstep: others make their passes at the same time, so one that failed cannot be made again.
    """

    def __init__(self, policy: MicroBatchPolicy, *, lockstep: bool = False) -> None:
        self.policy = policy
        self._in_step = lockstep

    def run(self, work: Callable[[MicroBatchPolicy], T], tokens: TokenDataset, rows: Sequence[int]) -> T:
        """Return what `work` returns; it begins anew with a smaller policy when it runs out of memory.

        Raises:
            DoesNotFit: the rows were passed one by one, and one is still too much; or others are in the same pass.
        """
        while True:
            try:
                return work(self.policy)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._in_step:
                    raise DoesNotFit(
                        f"memory does not suffice for passes of {self.policy}",
                        hint="set train.micro_batch_tokens to less; processes that share layers cannot go on with less",
                    ) from error
            # Not inside `except`: the error's traceback holds the tensors of the failed pass.
            free_memory()
            self._halve(tokens, rows)

    def _halve(self, tokens: TokenDataset, rows: Sequence[int]) -> None:
        largest = max(map(len, (group.rows for group in self.policy.split(tokens, rows))))
        if largest == 1:
            raise DoesNotFit(
                f"memory does not suffice for a single row of {int(tokens.lengths[list(rows)].max())} tokens",
                hint="lower data.max_tokens_per_example, set train.activation_checkpointing, or take a smaller model",
            )
        self.policy = replace(self.policy, rows=largest // 2)
        log(f"memory did not suffice: going on with {largest // 2} rows a forward pass; the step stays the same")
