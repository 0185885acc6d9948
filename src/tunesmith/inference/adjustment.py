"""Changes of a request's logits before sampling: penalties for tokens of the answer, and fixed additions."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.inference.sampling import require_option

if TYPE_CHECKING:  # `plan` needs records that name this one, and does not import torch
    import torch


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Additions to logits, as in OpenAI's API.

    A token that occurs n > 0 times in the answer so far loses `presence_penalty + n * frequency_penalty`.

    Args:
        presence_penalty: subtracted once from the logit of each token of the answer.
        frequency_penalty: subtracted from it for each time that it occurs.
        bias: (token, addition to its logit), each token once.

    Raises:
        RecipeError: a value is not finite.
    """

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("presence penalty", self.presence_penalty), ("frequency penalty", self.frequency_penalty)):
            require_option(math.isfinite(value), name, value, "any finite number; 0 is no penalty")
        wrong = [value for _, value in self.bias if not math.isfinite(value)]
        require_option(not wrong, "logit bias", wrong, "any finite number")

    def apply(self, logits: "torch.Tensor", answer: Sequence[int]) -> "torch.Tensor":
        """Return the adjusted logits [vocabulary] after an answer; the given ones are unchanged."""
        penalties = self.presence_penalty or self.frequency_penalty
        counts = Counter(answer) if penalties else {}
        changes = {token: -self.presence_penalty - n * self.frequency_penalty for token, n in counts.items()}
        for token, value in self.bias:
            changes[token] = changes.get(token, 0.0) + value
        if not changes:
            return logits
        places = logits.new_tensor(list(changes)).long()
        return logits.index_add(0, places, logits.new_tensor(list(changes.values())))


NO_ADJUSTMENT = Adjustment()
