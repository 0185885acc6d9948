"""Change modules for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Put a model into eval mode, and back into the mode before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def replace_forward(module: Any, forward: Callable[..., Any]) -> Callable[[], None]:
    """Let a module call `forward` instead of its own; return a function that undoes it."""
    before = vars(module).get("forward")  # its own may itself be a replacement
    module.forward = forward

    def undo() -> None:
        del module.forward
        if before is not None:
            module.forward = before

    return undo
