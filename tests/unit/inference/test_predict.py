"""One prompt that memory does not suffice for fails alone, where that is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.inference.asked import COUNT, Words, questions, random_model

from tunesmith.core.errors import DoesNotFit
from tunesmith.inference.predict import predict

LONG = 30  # tokens of a prompt; those of the others are few


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return random_model(tmp_path_factory.mktemp("models"))


def told(model: Any, lengths: list[int], **settings: Any) -> dict[int, dict[str, Any]]:
    asked = questions(lengths=lengths)
    lines = list(predict(model, asked, Words(), range(COUNT), **settings))  # type: ignore[arg-type]
    assert len(lines) == COUNT
    return {line["row"] - 1: line for line in lines}


@pytest.mark.parametrize("place", [0, 4])
def test_a_prompt_that_memory_does_not_suffice_for_fails_alone(model: Any, tmp_path: Path, place: int) -> None:
    lengths = [5] * place + [LONG] + [5] * (COUNT - place - 1)
    whole = told(model, lengths)

    def scarce(module: Any, args: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].shape[1] >= LONG - 1:  # the last one is read by the first step
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.register_forward_pre_hook(scarce, with_kwargs=True)
    try:
        with pytest.raises(DoesNotFit, match=f"one prompt of {LONG} tokens"):
            told(model, lengths)
        found = told(model, lengths, continue_on_oom=True)
    finally:
        hook.remove()
    failed = found.pop(place)
    assert failed["error"] == f"memory does not suffice to answer one prompt of {LONG} tokens"
    assert (failed["prediction"], failed["ids"], failed["stopped"]) == ("", [], False)
    assert failed["reference"] == f"right {place}"
    assert found == {i: line for i, line in whole.items() if i != place}
