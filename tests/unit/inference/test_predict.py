"""With `continue_on_oom`, only the prompt that does not fit in memory fails."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.support.prompts import COUNT, NumberTask, make_prompts, random_model

from tunesmith.core.errors import DoesNotFit
from tunesmith.inference.predict import predict

LONG = 30  # tokens of one prompt; the others have few


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return random_model(tmp_path_factory.mktemp("models"))


def predictions(model: Any, lengths: list[int], **settings: Any) -> dict[int, dict[str, Any]]:
    prompts = make_prompts(lengths=lengths)
    lines = list(predict(model, prompts, NumberTask(), range(COUNT), **settings))  # type: ignore[arg-type]
    assert len(lines) == COUNT
    return {line["row"] - 1: line for line in lines}


@pytest.mark.parametrize("place", [0, 4])
def test_a_prompt_too_large_for_memory_fails_alone(model: Any, tmp_path: Path, place: int) -> None:
    lengths = [5] * place + [LONG] + [5] * (COUNT - place - 1)
    whole = predictions(model, lengths)

    def out_of_memory(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] >= LONG - 1:  # the first step reads the last token
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.register_forward_pre_hook(out_of_memory, with_kwargs=True)
    try:
        with raises(DoesNotFit, "out-of-memory", LONG):
            predictions(model, lengths)
        found = predictions(model, lengths, continue_on_oom=True)
    finally:
        hook.remove()
    failed = found.pop(place)
    assert str(LONG) in failed["error"]
    assert (failed["prediction"], failed["ids"], failed["stopped"]) == ("", [], False)
    assert failed["reference"] == f"right {place}"
    assert found == {i: line for i, line in whole.items() if i != place}
