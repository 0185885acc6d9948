"""A tokenizer encodes prompts in one thread while the worker decodes answers in another."""

from concurrent.futures import ThreadPoolExecutor

from tests.support.tiny import make_tokenizer

from tunesmith.inference.request import StopStrings
from tunesmith.recipe.data_record import UNKNOWN_SOURCE
from tunesmith.recipe.schema import ChatData
from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.tokenizer import TokenizerAdapter


def test_threads_share_a_tokenizer() -> None:
    def task_of_new_tokenizer() -> tuple[ChatTask, TokenizerAdapter]:
        tokenizer = TokenizerAdapter(make_tokenizer())
        return ChatTask(ChatData(source=UNKNOWN_SOURCE, task="chat", messages="messages"), tokenizer), tokenizer

    task, tokenizer = task_of_new_tokenizer()
    stops = StopStrings(("STOP",), tokenizer.decode)
    texts = [f"Say {i} 👩🏽‍🚀 <think> one STOP two" * (1 + i % 4) for i in range(400)]

    def both(text: str) -> tuple[list[int], str, bool]:
        ids = task.encode_prompt(task.user_turn(text))
        return ids, task.decode_answer(ids), stops.completed_by_last(ids)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(both, texts))
    task, tokenizer = task_of_new_tokenizer()
    assert found == [both(text) for text in texts]
