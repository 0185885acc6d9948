"""`init --from`: a data file of each format becomes a recipe that loads and that `plan` accepts."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.support.errors import raises
from tests.support.tiny import save_model, save_plain_model, save_seq2seq
from tests.unit.draft.conftest import NO_MODEL, Drafted, write

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.draft.draft_recipe import draft_recipe
from tunesmith.plan.run_plan import plan_run
from tunesmith.recipe.load import load_recipe
from tunesmith.tasks.chatml import CHATML_TEMPLATE

WORDS = ["one", "two", "red", "blue", "cat", "dog", "sun", "sea"]


def text(i: int) -> str:
    return f"Say {WORDS[i % 8]} and {WORDS[i // 8 % 8]}, then {WORDS[i // 64 % 8]} again."


def answer(i: int) -> str:
    return f"It is {WORDS[i // 8 % 8]} and {WORDS[i % 8]} as you wish."


def turns(i: int, role: str = "role", content: str = "content", names: tuple[str, str] = ("user", "assistant")) -> Any:
    return [{role: names[0], content: text(i)}, {role: names[1], content: answer(i)}]


def rows(count: int = 120, **columns: Any) -> list[dict[str, Any]]:
    """Return rows whose columns are functions of the row's number, or constants."""
    return [
        {name: value(i) if callable(value) else value for name, value in columns.items() if value is not None}
        for i in range(count)
    ]


PAIR = {"task": "chat", "prompt": "{prompt}", "response": "{completion}"}
CASES: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    ("messages", rows(messages=turns), {"messages": "messages"}, "rougeL"),
    ("messages as JSON text", rows(messages=lambda i: json.dumps(turns(i))), {"messages": "messages"}, "rougeL"),
    ("ShareGPT", rows(conversations=lambda i: turns(i, "from", "value", ("human", "gpt"))),
     {"messages": "conversations"}, "rougeL"),
    ("TRL's conversational rows", rows(prompt=lambda i: turns(i)[:1], completion=lambda i: turns(i)[1:]),
     {"messages": ("prompt", "completion")}, "rougeL"),
    ("Alpaca", rows(instruction=text, input=lambda i: "" if i % 3 else "now", output=answer),
     {"prompt": "{instruction}\n\n{input?}", "response": "{output}"}, "rougeL"),
    ("prompts and completions", rows(prompt=text, completion=answer), PAIR, "rougeL"),
    ("a system turn in some rows", rows(system=lambda i: "Be brief." if i % 2 else "", question=text, answer=answer),
     {"system": "{system?}", "prompt": "{question}", "response": "{answer}"}, "rougeL"),
    ("questions about a context", rows(question=text, context="A cat.", answer=lambda i: WORDS[i // 2 % 8] + str(i)),
     {"prompt": "{context}\n\n{question}", "response": "{answer}"}, "exact_match"),
    ("preferences", rows(prompt=text, chosen=answer, rejected="no"),
     {"prompt": "{prompt}", "response": "{chosen}"}, "rougeL"),
    ("preferences of conversations", rows(chosen=turns, rejected=turns), {"messages": "chosen"}, "rougeL"),
    ("preferences with messages in the prompt",
     rows(prompt=lambda i: turns(i)[:1], chosen=lambda i: turns(i)[1:], rejected=lambda i: turns(i)[1:]),
     {"messages": ("prompt", "chosen")}, "rougeL"),
    ("documents", rows(id=lambda i: i, text=lambda i: f"{text(i)} {answer(i)}"), {"task": "text", "text": "text"},
     "perplexity"),
    ("labels", rows(text=text, label=lambda i: ("good", "bad")[i % 2]),
     {"prompt": "{text}\n\nAnswer with one of: bad, good", "response": "{label}"}, "exact_match"),
    ("JSON answers", rows(input=text, output=lambda i: json.dumps({"n": i})),
     {"prompt": "{input}", "response": "{output}"}, "json_field_f1"),
    ("SQL", rows(question=text, sql=lambda i: f"SELECT a FROM t WHERE b = {i}"),
     {"prompt": "{question}", "response": "{sql}"}, "exact_match"),
    ("numbers", rows(problem=text, solution=lambda i: i * 7), {"prompt": "{problem}", "response": "{solution}"},
     "exact_match"),
    ("two columns of unknown names", rows(mr=text, ja=answer), {"prompt": "{mr}", "response": "{ja}"}, "rougeL"),
    ("an answer by its name", rows(a=text, b="x", Summary=answer), {"prompt": "{a}", "response": "{Summary}"},
     "rougeL"),
    ("names with marks", rows(**{"in.put": text, "output": answer}),
     {"prompt": "{in_put}", "response": "{output}"}, "rougeL"),
    ("an object in a column", rows(record=lambda i: {"id": i, "question": text(i), "answer": answer(i)}),
     {"prompt": "{record.question}", "response": "{record.answer}"}, "rougeL"),
    ("messages in an object", rows(data=lambda i: {"turns": turns(i), "lang": "en"}), {"messages": "data.turns"},
     "rougeL"),
    ("an object as JSON text", rows(row=lambda i: json.dumps({"instruction": text(i), "output": answer(i)})),
     {"prompt": "{row.instruction}", "response": "{row.output}"}, "rougeL"),
    ("translations", rows(translation=lambda i: {"de": text(i), "fr": answer(i)}),
     {"prompt": "{translation.de}", "response": "{translation.fr}"}, "rougeL"),
    ("SQuAD", rows(context="A cat.", question=text, answers=lambda i: {"text": [answer(i)], "answer_start": [0]}),
     {"prompt": "{context}\n\n{question}", "response": "{answers.text.0}", "references": None}, "rougeL"),
    ("several answers", rows(question=text, answers=lambda i: [answer(i), "yes"][: 1 + i % 2]),
     {"response": "{answers.0}", "references": ("answers",)}, "rougeL"),
    ("references", rows(mr=text, target=answer, references=lambda i: [answer(i), "yes"]),
     {"response": "{target}", "references": ("target", "references")}, "rougeL"),
    ("the answer as its only reference", rows(mr=text, target=answer, references=lambda i: [answer(i)]),
     {"response": "{target}", "references": None}, "rougeL"),
    ("numbered summaries", rows(dialogue=text, summary1=answer, summary2="yes", summary3="no"),
     {"prompt": "Summarize the following dialogue.\n\n{dialogue}", "response": "{summary1}",
      "references": ("summary1", "summary2", "summary3")}, "rougeL"),
    ("thoughts in a column", rows(Question=text, Complex_CoT="So it is.", Response=answer),
     {"response": "<think>\n{Complex_CoT?}\n</think>\n\n{Response}", "reasoning": "keep"}, "rougeL"),
    ("thoughts in the answer", rows(prompt=text, completion=lambda i: f"<think>Hm.</think>{answer(i)}"),
     {**PAIR, "reasoning": "keep"}, "rougeL"),
    ("thoughts in messages", rows(messages=lambda i: [*turns(i)[:1], {**turns(i)[1], "reasoning_content": "Hm."}]),
     {"messages": "messages", "reasoning": "keep", "train_on": "all"}, "rougeL"),
    ("thoughts in several turns", rows(messages=lambda i: 2 * [*turns(i)[:1], {**turns(i)[1], "reasoning": "Hm."}]),
     {"reasoning": "keep", "train_on": "last"}, "rougeL"),
    ("conversations with a system column", rows(system=lambda i: "Be brief." if i % 2 else "", messages=turns),
     {"messages": "messages", "system": "{system?}"}, "rougeL"),
    ("conversations with two system turns",
     rows(system="Be kind.", messages=lambda i: [{"role": "system", "content": "Be brief."}, *turns(i)]),
     {"messages": "messages", "system": None}, "rougeL"),
    ("empty answers", rows(prompt=text, completion=lambda i: answer(i) if i % 4 else ""), PAIR, "rougeL"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "settings", "primary"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_recipe_fits_the_rows_and_plan_accepts_it(
    data: list[dict[str, Any]], settings: dict[str, Any], primary: str, drafted: Drafted, tiny: Path, tmp_path: Path
) -> None:
    recipe = drafted(data, tiny)
    assert {key: getattr(recipe.data, key) for key in settings} == settings
    assert recipe.evaluate.primary == primary
    plan = plan_run(tmp_path / "recipe.yaml")
    counts = plan.rows.counts
    assert counts["train"] > 40
    assert counts["valid"] > 0
    assert counts["test"] > 0


@pytest.mark.parametrize("file", ["rows.csv", "rows.tsv", "rows.json", "rows.jsonl.gz", "rows.parquet"])
def test_every_file_format_is_read(file: str, tmp_path: Path) -> None:
    data, path, out = rows(question=text, answer=answer), tmp_path / file, tmp_path / "recipe.yaml"
    if file.endswith((".csv", ".tsv")):
        with path.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, ["question", "answer"], delimiter="\t" if file.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(data)
    elif file.endswith(".json"):
        path.write_text(json.dumps(data), encoding="utf-8")
    elif file.endswith(".gz"):
        path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in data)))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(data), path)
    out.write_text(draft_recipe(str(path), out=out, model=NO_MODEL), encoding="utf-8")
    recipe = load_recipe(out)
    assert getattr(recipe.data.source, "file", None) == file
    assert getattr(recipe.data, "prompt", None) == "{question}"


def test_address_and_pattern_are_written_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    lines = "".join(json.dumps(row) + "\n" for row in rows(question=text, answer=answer))
    fsspec.filesystem("memory").pipe_file("/drafted/qa-train.jsonl", lines.encode())
    (tmp_path / "part-1.jsonl").write_text(lines, encoding="utf-8")
    out = tmp_path / "recipe.yaml"
    for data, source in (
        ("memory://drafted/qa-train.jsonl", "memory://drafted/qa-train.jsonl"),
        (f"{tmp_path}/part-*.jsonl", "part-*.jsonl"),
    ):
        out.write_text(draft_recipe(data, out=out, model=NO_MODEL), encoding="utf-8")
        assert getattr(load_recipe(out).data.source, "file", None) == source


def test_files_beside_the_file_become_valid_and_test(drafted: Drafted, tiny: Path, tmp_path: Path) -> None:
    data = rows(300, question=text, answer=answer)
    write(tmp_path / "qa-dev.jsonl", data[:20])
    write(tmp_path / "qa-test.jsonl", data[20:50])
    recipe = drafted(data[50:], tiny, file="qa-train.jsonl")
    assert (recipe.name, recipe.data.source.file) == ("qa", "qa-train.jsonl")
    assert (recipe.data.valid.file, recipe.data.test.file) == ("qa-dev.jsonl", "qa-test.jsonl")
    assert plan_run(tmp_path / "recipe.yaml").rows.counts == {"train": 250, "valid": 20, "test": 30}


def test_test_file_with_several_references(drafted: Drafted, tiny: Path, tmp_path: Path) -> None:
    """As DialogSum's: one summary per training row, and three per test row."""
    test = rows(20, dialogue=lambda i: text(i + 300), summary1=answer, summary2="yes", summary3="no")
    write(tmp_path / "sums.test.jsonl", test)
    recipe = drafted(rows(100, dialogue=text, summary=answer), tiny, file="sums.train.jsonl")
    assert recipe.data.test.rename == {"summary1": "summary"}
    assert recipe.data.references == ("summary", "summary2", "summary3")
    assert plan_run(tmp_path / "recipe.yaml").rows.counts["test"] == 20


def test_folder_of_a_dataset_with_its_splits(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "set").mkdir()
    data = rows(130, question=text, answer=answer)
    write(tmp_path / "set" / "train.jsonl", data[:100])
    write(tmp_path / "set" / "test.jsonl", data[100:])
    out = tmp_path / "recipe.yaml"
    out.write_text(draft_recipe(str(tmp_path / "set"), out=out, model=str(tiny)), encoding="utf-8")
    recipe = load_recipe(out)
    assert (recipe.data.source.hub, recipe.data.test.split, recipe.data.valid) == ("set", "test", None)
    assert plan_run(out).rows.counts["test"] == 30


def test_split_column_decides(drafted: Drafted, tiny: Path, tmp_path: Path) -> None:
    part = ("train", "train", "train", "validation", "test")
    recipe = drafted(rows(question=text, answer=answer, part=lambda i: part[i % 5]), tiny)
    assert (recipe.data.split.column, recipe.data.valid) == ("part", None)
    assert plan_run(tmp_path / "recipe.yaml").rows.counts == {"train": 72, "valid": 24, "test": 24}


TOOL = {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}}


def tool_turns(i: int) -> Any:
    arguments = {"city": WORDS[i % 8], "day": i}
    return [turns(i)[0], {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": json.dumps(arguments)}]}]


def sharegpt_calls(i: int) -> Any:
    call = json.dumps({"name": "weather", "arguments": {"city": WORDS[i % 8], "day": i}})
    return [{"from": "human", "value": text(i)}, {"from": "function_call", "value": call}]


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (rows(messages=tool_turns, tools=[TOOL]), {"messages": "messages", "tools": "tools"}),
        (rows(conversations=sharegpt_calls, tools=json.dumps([TOOL])), {"messages": "conversations", "tools": "tools"}),
        (rows(data=lambda i: {"messages": tool_turns(i), "functions": [TOOL]}), {"tools": "data.functions"}),
    ],
    ids=["messages", "ShareGPT", "in an object"],
)
@pytest.mark.parametrize("kind", ["reads tools", "without template", "not here"])
def test_tools_are_given_to_the_template(
    kind: str, data: list[dict[str, Any]], settings: dict[str, Any], drafted: Drafted, tmp_path: Path
) -> None:
    model: Path | str = NO_MODEL
    if kind == "reads tools":
        model = save_model(tmp_path / "model", "llama", template=CHATML_TEMPLATE)
    elif kind == "without template":
        model = save_plain_model(tmp_path / "model", "llama")
    recipe = drafted(data, model)
    assert {key: getattr(recipe.data, key) for key in settings} == settings
    assert recipe.model.chat_markup == ("chatml" if kind == "without template" else None)
    assert recipe.evaluate.primary == "tool_call_f1"
    if model != NO_MODEL:
        assert plan_run(tmp_path / "recipe.yaml").rows.counts["train"] > 40


def test_tools_become_text_for_a_template_without_tools(drafted: Drafted, tiny: Path, tmp_path: Path) -> None:
    recipe = drafted(rows(conversations=sharegpt_calls, tools=json.dumps([TOOL])), tiny)
    assert (recipe.data.tools, recipe.data.roles) == (None, {"function_call": "assistant"})
    assert "{tools}" in recipe.data.system
    assert recipe.evaluate.primary == "tool_call_f1"
    assert plan_run(tmp_path / "recipe.yaml").rows.counts["train"] > 40
    some = rows(conversations=sharegpt_calls, tools=lambda i: json.dumps([TOOL]) if i % 2 else "")
    assert drafted(some, tiny).data.system == "{tools?}"
    assert plan_run(tmp_path / "recipe.yaml").rows.counts["train"] > 40


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])], ids=["list", "text"])
def test_calls_need_a_template_that_writes_them(tools: Any, drafted: Drafted, tiny: Path) -> None:
    with raises(RecipeError, "no-effect", "tools", str(tiny)):
        drafted(rows(messages=tool_turns, tools=tools), tiny)


def test_shared_identifier_is_suggested_as_group(drafted: Drafted, tmp_path: Path) -> None:
    recipe = drafted(rows(question=text, answer=answer, db_id=lambda i: f"db {i // 4}"))
    assert recipe.data.split.by is None
    assert "    # by: db_id " in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")


def test_model_without_template_gets_a_completion_or_chatml(drafted: Drafted, tmp_path: Path) -> None:
    plain = save_plain_model(tmp_path / "plain", "gpt2")
    recipe = drafted(rows(question=text, answer=answer), plain)
    assert (recipe.data.task, getattr(recipe.data, "prompt", "")) == ("completion", "{question}\n\n")
    plan_run(tmp_path / "recipe.yaml")
    recipe = drafted(rows(messages=turns), plain)
    assert (recipe.data.task, recipe.model.chat_markup) == ("chat", "chatml")
    plan_run(tmp_path / "recipe.yaml")


def test_model_with_an_encoder_gets_source_and_target(drafted: Drafted, tmp_path: Path) -> None:
    t5 = save_seq2seq(tmp_path / "t5")
    recipe = drafted(rows(question=text, answer=answer), t5)
    assert (recipe.data.task, recipe.train.learning_rate) == ("seq2seq", 1e-3)
    plan_run(tmp_path / "recipe.yaml")
    with raises(RecipeError, "task-unsupported"):
        drafted(rows(messages=turns), t5)


def test_rows_beyond_the_context_length_are_dropped_openly(drafted: Drafted, tiny: Path, tmp_path: Path) -> None:
    recipe = drafted(rows(question=lambda i: text(i) * (1 if i % 10 else 60), answer=answer), tiny)
    assert recipe.data.max_tokens_per_example + recipe.evaluate.max_new_tokens == 512
    assert 0.1 < recipe.data.max_dropped_fraction < 0.2
    reason = f"longer than {recipe.data.max_tokens_per_example} tokens"
    assert plan_run(tmp_path / "recipe.yaml").rows.dropped == {reason: 12}


def test_short_documents_are_compared_as_a_whole(drafted: Drafted, tmp_path: Path) -> None:
    texts = [{"text": f"note {i} ends"} for i in range(60)]
    drafted(texts)
    assert "repeat another row" not in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    drafted(texts + texts[:30])
    assert "30 of 90 rows repeat another row" in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")


def test_long_documents_are_divided(drafted: Drafted, tiny: Path, tmp_path: Path) -> None:
    recipe = drafted(rows(text=lambda i: text(i) * (1 if i % 10 else 60)), tiny)
    assert recipe.data.too_long == "split"
    plan_run(tmp_path / "recipe.yaml")


def test_unknown_tokenizer_is_estimated_and_said(drafted: Drafted, tmp_path: Path) -> None:
    recipe = drafted(rows(question=text, answer=answer))
    assert recipe.model.base == NO_MODEL
    assert 64 <= recipe.data.max_tokens_per_example <= 128
    assert "estimated" in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ([], "no-rows"),
        (rows(a="", b=None), "no-rows"),
        (rows(id=lambda i: i, uuid=lambda i: f"x{i}"), "no-format"),
        (rows(record={"scores": [1, 2]}), "no-format"),
        (rows(prompt=lambda i: turns(i)[:1], chosen=answer, rejected=answer), "no-format"),
        (rows(messages=lambda i: turns(i)[:1]), "too-many-dropped"),
        (rows(2, question=text, answer=answer), "empty-split"),
        (rows(question="the same", answer=answer), "empty-split"),
    ],
    ids=["no rows", "empty cells", "identifiers", "nested", "divided", "no answers", "two rows", "one prompt"],
)
def test_rows_of_no_use_are_refused(data: list[dict[str, Any]], code: str, drafted: Drafted, tmp_path: Path) -> None:
    with raises(DataError, code):
        drafted(data)
    assert not (tmp_path / "recipe.yaml").exists()


def test_missing_file_and_unknown_model_are_refused(drafted: Drafted, tmp_path: Path) -> None:
    with raises(DataError, "not-found"):
        draft_recipe(str(tmp_path / "none.jsonl"), out=tmp_path / "recipe.yaml", model=NO_MODEL)
    with raises(RecipeError, "unknown-model"):
        drafted(rows(question=text, answer=answer), "not-a-model")
