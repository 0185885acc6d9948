"""Each way in which an exported folder can differ from the model of the verdict fails the check that it belongs to."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import change_weights, one_thread, save_model

from tunesmith.core.errors import NotProved
from tunesmith.core.files import MANIFEST
from tunesmith.core.json_server import RequestRefused
from tunesmith.engines.base import EngineAnswer, Ids, Messages
from tunesmith.engines.transformers_folder import TransformersFolder
from tunesmith.evaluate.run_rows import RunRows
from tunesmith.export.formats import Options
from tunesmith.export.merged import build
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.proof.prove import prove, require_proved
from tunesmith.proof.questions import find_rows, questions_about
from tunesmith.proof.record import Proof, read_proof, write_proof
from tunesmith.proof.reference import Reference
from tunesmith.proof.text import proof_text

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def tuned(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The tuned model of a finished run."""
    return resolve(str(finished / "runs/a"))


@pytest.fixture(scope="module")
def merged(tuned: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export."""
    folder = tmp_path_factory.mktemp("merged")
    build(tuned, folder, Options(type="f32"))
    return folder


def statuses(proof: Proof) -> dict[str, str]:
    """Return {check: status}."""
    return {check.name: check.status for check in proof.checks}


def prove_changed(tuned: ModelFolder, merged: Path, folder: Path, change: Change | None, type: str = "f32") -> Proof:
    """Change a copy of the export, and prove it."""
    shutil.copytree(merged, folder, dirs_exist_ok=True)
    if change:
        change(folder)
    with one_thread():
        return prove(tuned, TransformersFolder(folder), type=type)


def in_json(name: str, **values: Any) -> Change:
    """Set values in a JSON file; `...` removes one."""

    def change(folder: Path) -> None:
        stored = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in stored.items() if value is not ...}))

    return change


def in_tokenizer(edit: Callable[[dict[str, Any]], None]) -> Change:
    """Edit tokenizer.json."""

    def change(folder: Path) -> None:
        stored = json.loads((folder / "tokenizer.json").read_text())
        edit(stored)
        (folder / "tokenizer.json").write_text(json.dumps(stored))

    return change


def in_weights(edit: Callable[[str, Any], Any]) -> Change:
    """Change every tensor by name."""
    return partial(change_weights, edit=edit)


def in_template(old: str, new: str) -> Change:
    """Replace a text of the chat template, in both files that have it."""

    def change(folder: Path) -> None:
        template = (folder / "chat_template.jinja").read_text()
        assert old in template
        (folder / "chat_template.jinja").write_text(template.replace(old, new))
        in_json("tokenizer_config.json", chat_template=template.replace(old, new))(folder)

    return change


def without_template(folder: Path) -> None:
    """Remove the chat template."""
    (folder / "chat_template.jinja").unlink()
    in_json("tokenizer_config.json", chat_template=...)(folder)


def without_merges(tokenizer: dict[str, Any]) -> None:
    """Remove merges, so that words have more tokens."""
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-10]


def with_beginning(tokenizer: dict[str, Any]) -> None:
    """Add a token before every prompt."""
    begin, text = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text], "special_tokens": special,
    }  # fmt: skip


def forget_control_token(tokenizer: dict[str, Any]) -> None:
    """Remove a control token from the added tokens, so that it is plain text."""
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if one["content"] != "<|im_start|>"]


def test_an_export_is_proved_by_every_check(tuned: ModelFolder, merged: Path, tmp_path: Path) -> None:
    proof = prove_changed(tuned, merged, tmp_path / "copy", None)
    assert set(statuses(proof).values()) == {"passed"}, proof_text(proof)
    assert proof.passed
    assert proof.verdict is not None
    assert proof.rows == proof.verdict.primary.rows > 0
    assert proof.verdict.primary.gain == 0
    written = write_proof(proof, tmp_path)
    assert read_proof(written).to_json() == proof.to_json()
    assert str(tmp_path) not in written.read_text()


@pytest.mark.parametrize(
    ("change", "failing", "passing"),
    [
        (in_tokenizer(without_merges), "ids template", "logits answers verdict"),
        (in_tokenizer(forget_control_token), "ids template", "logits answers verdict"),
        (in_tokenizer(with_beginning), "ids", "template logits answers verdict"),
        (without_template, "template", "ids logits answers verdict"),
        (in_template("<|im_end|>", "<|im_end|> "), "template", "ids logits answers verdict"),
        (in_template("Be brief.", "Be long."), "template", "ids logits answers verdict"),
        (in_json("config.json", rms_norm_eps=0.1), "logits", "ids template"),
        (in_json("generation_config.json", eos_token_id=0), "answers", "ids template logits"),
    ],
    ids=["merges", "control token", "beginning", "no template", "template", "system turn", "epsilon", "eos"],
)
def test_each_fault_fails_its_check(
    tuned: ModelFolder, merged: Path, tmp_path: Path, change: Change, failing: str, passing: str
) -> None:
    proof = prove_changed(tuned, merged, tmp_path / "copy", change)
    found = statuses(proof)
    for names, status in ((failing, "failed"), (passing, "passed")):
        assert {found[name] for name in names.split()} == {status}, proof_text(proof)
    assert not proof.passed


@pytest.fixture(scope="module")
def attentive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose attention depends on positions, unlike that of other random models."""
    folder = save_model(tmp_path_factory.mktemp("attentive") / "model", "llama")
    change_weights(folder, lambda name, tensor: 6 * tensor if "q_proj" in name or "k_proj" in name else tensor)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        None,
        in_json("config.json", rope_theta=100.0, rope_parameters=...),
        in_weights(lambda name, tensor: tensor.flip(0) if "q_proj" in name else tensor),
    ],
    ids=["no change", "rope", "order of q"],
)
def test_without_a_run_probes_are_asked(attentive: Path, tmp_path: Path, change: Change | None) -> None:
    proof = prove_changed(resolve(str(attentive)), attentive, tmp_path / "copy", change)
    result = "failed" if change else "passed"
    assert statuses(proof) == {
        "ids": "passed", "template": "passed", "logits": result, "answers": result, "verdict": "not possible",
    }, proof_text(proof)  # fmt: skip
    assert (proof.rows, proof.verdict, proof.passed) == (0, None, change is None)


class Without:
    """A real engine that offers only some of the ways to ask it."""

    def __init__(self, engine: TransformersFolder, *offered: str) -> None:
        self._engine, self._offered, self.name = engine, offered, "a server"

    def _or_none(self, name: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self._engine, name)(*arguments, **options) if name in self._offered else None

    def encode(self, text: str, *, add_special: bool = False) -> list[int] | None:
        return self._or_none("encode", text, add_special=add_special)

    def encode_chat(self, messages: Messages) -> list[int] | None:
        return self._or_none("encode_chat", messages)

    def token_scores(self, prompt: Ids, answer: Ids, top: int) -> Any:
        return self._or_none("token_scores", prompt, answer, top)

    def answer(self, prompt: Ids, *, max_new_tokens: int) -> EngineAnswer | None:
        return self._or_none("answer", prompt, max_new_tokens=max_new_tokens)

    def answer_chat(self, messages: Messages, *, max_new_tokens: int) -> EngineAnswer | None:
        answer = self._or_none("answer_chat", messages, max_new_tokens=max_new_tokens)
        return answer and replace(answer, ids=None)

    def close(self) -> None:
        self._engine.close()


@pytest.mark.parametrize(
    ("offered", "possible", "passed"),
    [
        (["answer_chat"], {"answers", "verdict"}, True),
        (["encode", "encode_chat"], {"ids", "template"}, False),
        (["token_scores"], {"logits"}, True),
    ],
)
def test_checks_that_an_engine_does_not_offer_are_not_possible(
    tuned: ModelFolder, merged: Path, offered: list[str], possible: set[str], passed: bool
) -> None:
    with one_thread():
        proof = prove(tuned, Without(TransformersFolder(merged), *offered), type="f32")
    found = statuses(proof)
    assert {name for name, status in found.items() if status == "passed"} == possible, proof_text(proof)
    assert set(found.values()) == {"passed", "not possible"}
    assert all(check.impossible for check in proof.checks if check.name not in possible)
    assert proof.passed is passed


class ShortContext(Without):
    """A real engine that refuses prompts beyond a context length, as servers do."""

    positions = 110

    def token_scores(self, prompt: Ids, answer: Ids, top: int) -> Any:
        if len(prompt) > self.positions:
            raise RequestRefused(400, "the context is full", where=self.name)
        return super().token_scores(prompt, answer, top)

    def answer(self, prompt: Ids, *, max_new_tokens: int) -> EngineAnswer | None:
        if len(prompt) > self.positions:
            return EngineAnswer("", None, stopped=False, error="the context is full")
        return super().answer(prompt, max_new_tokens=max_new_tokens)


def test_refused_prompts_fail_with_a_hint_about_the_context(attentive: Path) -> None:
    with one_thread():
        proof = prove(
            resolve(str(attentive)), ShortContext(TransformersFolder(attentive), "token_scores", "answer"), type="f32"
        )
    assert statuses(proof)["answers"] == "failed", proof_text(proof)
    assert statuses(proof)["logits"] == "passed"
    with raises(NotProved, "not-proved", "context"):
        require_proved(proof)


def test_answers_as_text_differ_where_the_model_does(tuned: ModelFolder, merged: Path, tmp_path: Path) -> None:
    shutil.copytree(merged, tmp_path, dirs_exist_ok=True)
    in_json("config.json", rms_norm_eps=0.1)(tmp_path)
    with one_thread():
        proof = prove(tuned, Without(TransformersFolder(tmp_path), "answer_chat"), type="f32")
    assert statuses(proof)["answers"] == "failed"


def test_the_reference_is_made_once_and_again_if_it_is_damaged(tuned: ModelFolder, merged: Path) -> None:
    with one_thread():
        prove(tuned, TransformersFolder(merged), type="f32")
        reference = Reference(tuned, questions_about(tuned, find_rows(tuned)))
        made = (reference.folder / MANIFEST).stat().st_mtime_ns
        assert [answer.line["error"] for answer in reference.answers] == [None] * len(reference.answers)
        again = Reference(tuned, questions_about(tuned, find_rows(tuned)))
        assert (again.folder / MANIFEST).stat().st_mtime_ns == made
        path = reference.folder / "generations.jsonl"
        path.write_text(path.read_text().replace("true", "false"))
        repaired = Reference(tuned, questions_about(tuned, find_rows(tuned)))
    assert repaired.answers == reference.answers
    assert repaired.scored == reference.scored


def test_an_interrupted_reference_continues(tuned: ModelFolder) -> None:
    with one_thread():
        whole = Reference(tuned, questions_about(tuned, find_rows(tuned)))
        (whole.folder / MANIFEST).unlink()
        (whole.folder / "token_scores.jsonl").unlink()
        path = whole.folder / "generations.jsonl"
        kept = path.read_text().splitlines(keepends=True)[:4]
        path.write_text("".join(kept) + '{"id": "cut')
        continued = Reference(tuned, questions_about(tuned, find_rows(tuned)))
    assert continued.answers == whole.answers
    assert path.read_text().startswith("".join(kept))


def test_a_registered_version_finds_the_rows_of_its_run(
    finished: Path, tuned: ModelFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TUNESMITH_REGISTRY", str(finished / "registry"))
    monkeypatch.chdir(tmp_path)
    rows = find_rows(resolve("loop@staging"))
    assert isinstance(rows, RunRows)
    assert rows.run.path.resolve() == (finished / "runs/a").resolve()
    assert isinstance(find_rows(resolve(str(finished / "base"))), str)


def test_a_quantized_export_need_not_answer_alike_but_must_end(
    tuned: ModelFolder, merged: Path, tmp_path: Path
) -> None:
    def rounded(name: str, tensor: Any) -> Any:
        return (tensor * 12).round() / 12 if tensor.ndim == 2 else tensor

    proof = prove_changed(tuned, merged, tmp_path / "copy", in_weights(rounded), "q8_0")
    answers = {measure.name: measure for check in proof.checks if check.name == "answers" for measure in check.measures}
    assert answers["equal answers"].at_least is None
    assert answers["answers that end"].at_least is not None
