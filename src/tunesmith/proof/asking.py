"""Ask an engine many questions, several at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from tunesmith.core import interrupt
from tunesmith.core.errors import TunesmithError
from tunesmith.core.progress import Progress
from tunesmith.engines.base import BatchEngine, Engine, EngineAnswer, Ids

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_AT_A_TIME = 4
# A server answers so if a prompt is too long, or if its template engine fails on a conversation.
_REFUSALS = ("request-refused", "server-failed")


def ask_all(
    label: str,
    ask: Callable[[Question], Answer | None],
    questions: Sequence[Question],
    *,
    unit: str,
    refused: Callable[[Question, TunesmithError], Answer] | None = None,
) -> list[Answer] | None:
    """Return the answers in the order of the questions; None if the engine has no way to answer the first one.

    Args:
        label: the name of the work, for the progress.
        refused: returns the answer to a question that a server refuses; by default a refusal is raised.
    """

    def attempt(question: Question) -> Answer | None:
        try:
            return ask(question)
        except TunesmithError as error:
            if refused is None or error.code not in _REFUSALS:
                raise
            return refused(question, error)

    if not questions:
        return []
    first = attempt(questions[0])
    if first is None:
        return None
    answers: dict[int, Answer | None] = {0: first}
    progress = Progress(label, total=len(questions), unit=unit)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        try:
            futures = {pool.submit(attempt, question): place for place, question in enumerate(questions[1:], 1)}
            for future in as_completed(futures):
                interrupt.check()
                answers[futures[future]] = future.result()
                progress.update(len(answers))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    progress.close()
    return [answer for _, answer in sorted(answers.items()) if answer is not None]


def ask_prompts(
    label: str, engine: Engine, prompts: Sequence[Ids], *, max_new_tokens: int
) -> list[EngineAnswer] | None:
    """Return the greedy answers to prompts in their order; None if the engine takes no ids."""
    if not isinstance(engine, BatchEngine):
        return ask_all(label, lambda ids: engine.answer(ids, max_new_tokens=max_new_tokens), prompts, unit="prompts")
    answers: dict[int, EngineAnswer] = {}
    progress = Progress(label, total=len(prompts), unit="prompts")
    for place, answer in engine.answers(prompts, max_new_tokens=max_new_tokens):
        interrupt.check()
        answers[place] = answer
        progress.update(len(answers))
    progress.close()
    return [answer for _, answer in sorted(answers.items())]
