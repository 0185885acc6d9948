"""Ask an engine many questions, several at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from tunesmith.core import interrupt
from tunesmith.core.progress import Progress

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_AT_A_TIME = 4


def ask_all(
    label: str, ask: Callable[[Question], Answer | None], questions: Sequence[Question], *, unit: str
) -> list[Answer] | None:
    """Return the answers in the order of the questions; None if the engine has no way to answer the first one.

    Args:
        label: the name of the work, for the progress.
    """
    if not questions:
        return []
    first = ask(questions[0])
    if first is None:
        return None
    answers: dict[int, Answer | None] = {0: first}
    progress = Progress(label, total=len(questions), unit=unit)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        try:
            futures = {pool.submit(ask, question): place for place, question in enumerate(questions[1:], 1)}
            for future in as_completed(futures):
                interrupt.check()
                answers[futures[future]] = future.result()
                progress.update(len(answers))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    progress.close()
    return [answer for _, answer in sorted(answers.items()) if answer is not None]
