"""Answers survive a kill line by line and belong to one model and one set of prompts; likelihoods are sums per row."""

import json
import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.support.prompts import COUNT, FP32, LIMIT, POSITIONS, NumberTask, make_prompts, random_model
from tests.support.tokens import write_examples

from tunesmith.core import interrupt
from tunesmith.core.errors import DamagedFile, DoesNotFit, Interrupted
from tunesmith.core.records import TokenizedExample
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.evaluate import model_outputs
from tunesmith.evaluate.model_outputs import generate_answers, response_stats, score_likelihoods
from tunesmith.inference import predict
from tunesmith.inference.prompts import Prompts
from tunesmith.inference.request import Answer
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.slot_check import slot_budget


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return random_model(tmp_path_factory.mktemp("models"))


Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def ask(model: Any, tmp_path: Path) -> Ask:
    """Return a function that answers prompts into one folder."""

    def ask_all(prompts: Prompts | None = None, *, key: str = "key") -> list[dict[str, Any]]:
        return generate_answers("base", model, prompts or make_prompts(), NumberTask(), tmp_path / "base", key=key)[0]  # type: ignore[arg-type]

    return ask_all


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Collect the prompts for which answers are generated."""
    generated_for: list[tuple[int, ...]] = []
    real = predict.generate

    def record_prompts(model: Any, prompts: Sequence[Sequence[int]], **settings: Any) -> Any:
        generated_for.extend(map(tuple, prompts))
        return real(model, prompts, **settings)

    monkeypatch.setattr(predict, "generate", record_prompts)
    return generated_for


def test_answers_are_in_the_order_of_prompts(ask: Ask, tmp_path: Path) -> None:
    answers = ask()
    assert [line["id"] for line in answers] == [f"id-{i}" for i in range(COUNT)]
    for i, line in enumerate(answers):
        assert line == {
            "id": f"id-{i}", "row": i + 1, "prompt": f"prompt {i}", "prediction": line["prediction"],
            "reference": f"right {i}", "new_tokens": LIMIT, "ids": line["ids"], "stopped": False, "error": None,
        }  # fmt: skip
        assert NumberTask().decode_answer(line["ids"]) == line["prediction"]
        assert len(line["prediction"].split("\u2028\x85 ")) == LIMIT
    stored = [json.loads(line) for line in (tmp_path / "base" / "generations.jsonl").read_text().split("\n")[:-1]]
    assert sorted(stored, key=lambda line: line["row"]) == answers


def test_finished_answers_are_not_generated_again(ask: Ask, generated: list[Any]) -> None:
    first = ask()
    assert len(generated) == COUNT
    assert ask() == first
    assert len(generated) == COUNT


@pytest.mark.parametrize("finished", [0, 1, 4, 9])
@pytest.mark.parametrize("torn", [b"", b'{"id": "id-3", "predic', b"\xe2\x80"])
def test_only_missing_answers_are_generated_after_a_kill(
    ask: Ask, generated: list[Any], tmp_path: Path, finished: int, torn: bytes
) -> None:
    whole = ask()
    log = tmp_path / "base" / "generations.jsonl"
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"".join(line + b"\n" for line in lines[:finished]) + torn)
    done = {json.loads(line)["id"] for line in lines[:finished]}
    generated.clear()
    assert ask() == whole
    prompts = dict(zip([e.id for e in make_prompts().examples], make_prompts().prompts, strict=True))
    assert sorted(generated) == sorted(prompts[name] for name in prompts.keys() - done)
    assert len(log.read_bytes().split(b"\n")) == COUNT + 1


def test_files_of_other_ranks_are_used_and_merged(ask: Ask, generated: list[Any], tmp_path: Path) -> None:
    whole = ask()
    log = tmp_path / "base" / "generations.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]))
    (tmp_path / "base" / "generations-1.jsonl").write_bytes(b"".join(lines[3:5]))
    (tmp_path / "base" / "generations-2.jsonl").write_bytes(lines[5] + b'{"id": "id-')
    generated.clear()
    assert ask() == whole
    assert len(generated) == COUNT - 6
    assert sorted(path.name for path in log.parent.iterdir()) == ["generations.jsonl", "key.json"]
    assert ask() == whole
    (tmp_path / "base" / "generations-1.jsonl").write_bytes(b"".join(lines[3:5]))
    ask(key="another")
    assert len(generated) == 2 * COUNT - 6


def test_finished_answers_survive_a_signal(
    ask: Ask, model: Any, generated: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.inference.generate._ROWS_IN_SLOTS", 2)
    slot_budget(model, make_prompts().prompts)  # its forward passes must not be counted below
    real, passes = interrupt.check, []

    def check() -> None:
        passes.append(1)
        if len(passes) == 2 * (1 + LIMIT) + 3:  # two pairs are answered, and the third has begun
            raise Interrupted("stopped")
        real()

    monkeypatch.setattr(interrupt, "check", check)
    with pytest.raises(Interrupted):
        ask()
    assert len((tmp_path / "base" / "generations.jsonl").read_bytes().split(b"\n")) == 4 + 1
    generated.clear()
    answers = ask()
    assert len(generated) == COUNT - 4
    shutil.rmtree(tmp_path / "base")
    assert ask() == answers


def test_all_answers_are_generated_again_under_another_key(ask: Ask, generated: list[Any], tmp_path: Path) -> None:
    first = ask(key="one")
    log = tmp_path / "base" / "generations.jsonl"
    log.write_text(log.read_text().replace("right 0", "stale 0"))
    assert ask(key="one")[0]["reference"] == "stale 0"
    assert ask(key="two") == first
    assert len(generated) == 2 * COUNT
    (tmp_path / "base" / "key.json").unlink()  # answers without a key are discarded, too
    ask(key="two")
    assert len(generated) == 3 * COUNT


def test_new_prompts_under_the_same_key_are_answered(ask: Ask, generated: list[Any]) -> None:
    ask(make_prompts(4))
    assert len(ask(make_prompts(6))) == 6
    assert len(generated) == 6


def test_damaged_line_is_named(ask: Ask, tmp_path: Path) -> None:
    ask()
    log = tmp_path / "base" / "generations.jsonl"
    log.write_bytes(b"\0" * 20 + b"\n" + log.read_bytes())
    with raises(DamagedFile, "damaged-file", where="generations.jsonl:1") as error:
        ask()
    assert error.value.hint


def test_full_disk_keeps_finished_answers(ask: Ask, tmp_path: Path) -> None:
    answers = ask()
    log = tmp_path / "base" / "generations.jsonl"
    lines = log.read_bytes().split(b"\n")[:-1]
    log.write_bytes(lines[0] + b"\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(lines[0]) + len(lines[1]) + 10, limits[1]))
        with raises(DoesNotFit, "disk-full", where=str(log)):
            ask()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ask() == answers


# --- sampled answers ---


def sampled(count: int = COUNT, samples: int = 1) -> Prompts:
    """Return prompts whose answers are sampled as in an evaluation."""
    prompts, options = make_prompts(count), Sampling(temperature=1.0, seed=3)
    each = [options.of_answer(row.id, sample) for row in prompts.examples for sample in range(1, samples + 1)]
    return replace(prompts, samples=samples, sampling=tuple(each))


def test_a_sampled_answer_is_the_same_alone_in_a_batch_and_in_a_part_of_the_rows(ask: Ask, model: Any) -> None:
    prompts = sampled(64)
    batch = ask(prompts)
    assert len({line["prediction"] for line in batch}) > 50
    assert batch != ask(make_prompts(64), key="greedy")
    odd = predict.predict(model, prompts, NumberTask(), range(1, 64, 2))  # type: ignore[arg-type]
    assert sorted(odd, key=lambda line: line["row"]) == batch[1::2]  # as one of two processes answers them
    for number in (0, 31, 63):
        assert list(predict.predict(model, prompts, NumberTask(), [number])) == [batch[number]]  # type: ignore[arg-type]


def test_each_row_has_several_samples_and_none_is_asked_twice_after_a_kill(
    ask: Ask, generated: list[Any], tmp_path: Path
) -> None:
    prompts = sampled(samples=3)
    whole = ask(prompts)
    assert [(line["row"], line["sample"]) for line in whole] == [
        (row, sample) for row in range(1, COUNT + 1) for sample in (1, 2, 3)
    ]
    assert len({line["prediction"] for line in whole}) == 3 * COUNT
    log = tmp_path / "base" / "generations.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    generated.clear()
    assert ask(prompts) == whole
    assert len(generated) == 3 * COUNT - 7
    assert len(log.read_bytes().splitlines()) == 3 * COUNT


# --- rows that are too long ---


def test_prompts_beyond_the_positions_fail_and_others_are_answered(ask: Ask, generated: list[Any]) -> None:
    prompts = make_prompts(4, lengths=[POSITIONS - LIMIT, POSITIONS - LIMIT + 1, POSITIONS + 100, 4])
    answers = ask(prompts)
    assert [line["error"] is None for line in answers] == [True, False, False, True]
    assert all(str(POSITIONS) in line["error"] and line["prediction"] == "" for line in answers[1:3])
    assert [line["new_tokens"] for line in answers] == [LIMIT, 0, 0, LIMIT]
    assert [len(prompt) for prompt in generated] == [POSITIONS - LIMIT, 4]
    assert response_stats(answers) == {"rows": 4, "failed": 2, "empty": 0, "cut_off": 2, "stopped": 0}
    assert ask(prompts) == answers
    assert len(generated) == 2


# --- response stats ---


def test_response_stats() -> None:
    def line(prediction: str, *, stopped: bool, error: str | None = None) -> dict[str, Any]:
        return {"prediction": prediction, "stopped": stopped, "error": error}

    stats = response_stats([
        line("yes", stopped=True), line("no", stopped=True), line(" \n", stopped=True), line("", stopped=False),
        line("long", stopped=False), line("", stopped=False, error="too long"),
    ])  # fmt: skip
    assert stats == {"rows": 6, "failed": 1, "empty": 2, "cut_off": 2, "stopped": 3}
    assert response_stats([]) == dict.fromkeys(("rows", "failed", "empty", "cut_off", "stopped"), 0)


def test_stopped_answers_are_distinguished_from_cut_off_ones(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_every_second(model: Any, prompts: Sequence[Sequence[int]], **_: Any) -> Any:
        yield from (Answer(i, (9,) * (i % 2), stopped=i % 2 == 0) for i in reversed(range(len(prompts))))

    monkeypatch.setattr(predict, "generate", stop_every_second)
    answers = ask()
    assert [line["stopped"] for line in answers] == [True, False] * (COUNT // 2)
    assert response_stats(answers) == {"rows": 10, "failed": 0, "empty": 5, "cut_off": 5, "stopped": 5}


# --- likelihoods ---


@pytest.mark.parametrize("max_tokens", [16, 4096])
def test_likelihoods_are_sums_over_the_trained_tokens_of_each_row(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    monkeypatch.setattr(model_outputs, "_MAX_TOKENS", max_tokens)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i, length in enumerate([7, 40, 3, 21, 12]):
        ids = torch.randint(3, 300, (length,), generator=generator).tolist()
        trained = [k > 0 and (k == length - 1 or (k + i) % 3 == 0) for k in range(length)]
        rows.append(TokenizedExample(str(i), tuple(ids), tuple(trained)))
    write_examples(tmp_path / "x.safetensors", rows)
    chosen = [3, 0, 4, 1]
    likelihoods = score_likelihoods(model.train(), TokenDataset(tmp_path / "x.safetensors"), chosen, FP32, 2)
    for line, row in zip(likelihoods, chosen, strict=True):
        ids = torch.tensor([rows[row].input_ids])
        with torch.inference_mode():
            logits = model.eval()(input_ids=ids).logits[0].double().log_softmax(-1)
        positions = [k for k, is_trained in enumerate(rows[row].trained) if is_trained]
        expected = [float(logits[k - 1, ids[0, k]]) for k in positions]
        assert line["tokens"] == len(positions)
        assert line["log_likelihood"] == pytest.approx(sum(expected), rel=1e-5)
        assert line["correct"] == sum(int(logits[k - 1].argmax()) == int(ids[0, k]) for k in positions)


def test_likelihoods_can_be_interrupted(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_examples(tmp_path / "x.safetensors", [TokenizedExample("a", (5, 6, 7), (False, True, True))])
    monkeypatch.setattr(interrupt, "_requested", [15])
    with pytest.raises(Interrupted):
        score_likelihoods(model, TokenDataset(tmp_path / "x.safetensors"), [0], FP32, 2)
