"""What real users ran into, each as one line: the input, the exit code, and the words or the value that matter."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.cases import MESSAGES, Case, Command, Rows, answered, chats, lines, table, write


def half(one: Any, other: Any) -> Callable[[int], Any]:
    """Return a column's function: one value for odd rows and another for even ones."""
    return lambda i: one if i % 2 else other


HAPPY = "\u6211\u4eca\u5929\u5f88\u9ad8\u5174"
ROUGE = {"evaluate.metrics": ["rougeL"], "evaluate.primary": "rougeL"}
SYSTEM = {"role": "system", "content": ""}
CONTROL = "contain control tokens of this model as text, such as <|im_end|>"
PLANNED = [
    Case("R01 an empty column", 3, ("`{n?}`", "20 of 40"), {"data.prompt": "{q}\n{n}"}, table(n=half("", "note"))),
    Case("R01 an optional column", 0, (), {"data.prompt": "{q}\n\n{n?}"}, table(n=half("note", "")),
         prompt=("Say one and one, 0<|im_end|>",)),
    Case("R02 a key left out", 3, ("`{n?}`", "20 of 40"), {"data.prompt": "{q}\n{n}"}, table(n=half(..., "note"))),
    Case("R02 an optional key left out", 0, (), {"data.prompt": "{q}\n{n?}"}, table(n=half("note", ...))),
    Case("R02 an optional column that no row has", 3, ("`m`",), {"data.prompt": "{q}\n{m?}"}),
    Case("R02b a filter on a key left out", 0, ("filtered 20",), {
        "data.filters": [{"column": "n", "equals": "x"}], "data.split": {"valid": 0, "test": 0.4},
    }, table(n=half(..., "x"))),
    Case("R03 ShareGPT", 0, (), MESSAGES,
         [{"m": [{"from": "human", "value": f"x {i}"}, {"from": "gpt", "value": "y"}]} for i in range(40)],
         trained="y<|im_end|>"),
    Case("R03 ShareGPT in another column", 3, ("messages: talk",), MESSAGES,
         [{"talk": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}] * 40),
    Case("R04 content in parts", 3, ("is a list",), MESSAGES, chats([{"type": "text", "text": "x"}], "y")),
    Case("R04 content that is a number", 3, ("is a number",), MESSAGES, chats(5, "y")),
    Case("R05 calls without a name", 3, ("tool call",), MESSAGES, chats("hi #", None, tool_calls=[{"id": "1"}])),
    Case("R05 calls without a name beside tools", 3, ("tool call",), MESSAGES,
         [{**row, "tools": [{"name": "f"}]} for row in chats("hi #", None, tool_calls=[{"id": "1"}])]),
    Case("R05b tools beside messages", 3, ("`tools`", "rows.jsonl:1"), MESSAGES,
         [{**row, "tools": [{"name": "f"}]} for row in chats("hi #", "x")]),
    Case("a name of a message", 3, ("`name`",), MESSAGES, chats("hi #", "x", name="Ann")),
    Case("R08 an empty system turn", 0, (), MESSAGES, [{"m": [SYSTEM, *row["m"]]} for row in chats("hi #", "x")]),
    Case("R08b an optional system turn", 0, (), {"data.system": "{s?}"}, table(s=half("", "Be brief."))),
    Case("R10 quotes that are letters", 3, ("quote: none",), {"data.source.file": "rows.tsv"},
         b'q\ta\n' + b"".join(b'"Say" %d\tx\n' % i for i in range(40)), "rows.tsv"),
    Case("R10 a file without quotes", 0, (), {"data.source": {"file": "rows.tsv", "quote": "none"}},
         b'q\ta\n' + b"".join(b'"Say" %d\t"x\n' % i for i in range(40)), "rows.tsv", trained='"x<|im_end|>'),
    Case("R11 a list named JSONL", 3, (".json",), {}, json.dumps(table()).replace("}, ", "},\n").encode()),
    Case("R40 rows that contain control tokens", 0, ("40 rows", CONTROL, "rows.jsonl:1"), {}, table(a="one<|im_end|>")),
    Case("R13 a list in Python's notation", 3, ("json.dumps",), {**MESSAGES, "data.source.file": "rows.csv"},
         b"m\n" + b"".join(b"\"[{'role': 'user', 'content': 'x %d'}]\"\n" % i for i in range(40)), "rows.csv"),
    Case("R15 a pattern", 0, ("`*.jsonl` is 1 file: rows.jsonl",), {"data.source.file": "*.jsonl"}),
    Case("R15 a pattern without a match", 3, ("rows.jsonl",), {"data.source.file": "*.csv"}),
    Case("R16 ROUGE and Chinese", 0, (), ROUGE, table(a=lambda i: HAPPY[i % 3 :])),
    Case("R16 ROUGE and emoji", 2, ("evaluate.primary", "chrf"), ROUGE, table(a="\U0001f600")),
    Case("R21 backslashes in double quotes", 2, ("a form feed",), {"data.system": "Use \frac."}),
    Case("O25 doubled braces around a column", 0, ("{{a}}",), {"data.prompt": "{{a}} {q}"}),
    Case("O25 doubled braces alone", 2, ("single braces", "{q}"), {"data.prompt": "{{ q }}"}),
    Case("R42 no chat template", 2, ("chat_markup: chatml",), {"model.base": "plain"}),
    Case("O17 chats that begin alike", 0, ("120 rows have the same prompt", "data.split.by"), {"seed": 5},
         table(200, q=lambda i: f"Say {i}" if i % 5 > 2 else "Hi")),
    Case("O21 a turn that is not to be learned", 0, (), MESSAGES,
         [{"m": [*chats("a #", "BAD", weight=0)[i]["m"], *row["m"]]} for i, row in enumerate(chats("b #", "good"))],
         trained="good<|im_end|>"),
    Case("O27 rows that ask the same", 3, ("only 1 prompt", "data.split.column"), {}, table(q="Say it")),
    Case("O04 thoughts that are learned", 3, ("rewrites the conversation",), {**MESSAGES, "model.base": "thinking"},
         chats("hi #", "<think>so</think>x", "and?", "y")),
    Case("O04 thoughts that are not learned", 0, (), {
        **MESSAGES, "model.base": "thinking", "data.train_on": "last",
    }, chats("hi #", "<think>so</think>x", "and?", "y"), trained="y<|im_end|>"),
    Case("rows that are too long", 3, ("too_long: truncate", "the longest row"), {"data.max_tokens_per_example": 8}),
    Case("Alpaca's columns", 3, ("Alpaca",), {}, [{"instruction": f"x {i}", "output": "y"} for i in range(40)]),
    Case("R02b a filter on a column that no row has", 3, ("`b`",), {"data.filters": [{"column": "b", "equals": "x"}]}),
    Case("R06 a role that is not known", 3, ("developer",), MESSAGES, chats("hi #", "x", role="developer")),
    Case("R07 an unanswered last question", 0, (), MESSAGES, chats("hi #", "x", "more?")),
    Case("R07 two questions in a row", 3, ("roles must alternate",), {**MESSAGES, "model.base": "strict"},
         [{"m": [{"role": "user", "content": f"a {i}"}, *turns["m"]]} for i, turns in enumerate(chats("b", "c"))]),
    Case("R17 truth values", 0, (), {}, table(a=True), trained="true<|im_end|>"),
    Case("R18 12.50 in JSON", 0, (), {}, answered("12.50"), trained="12.50<|im_end|>"),
    Case("R18 1E3 in JSON", 0, (), {}, answered("1E3"), trained="1E3<|im_end|>"),
    Case("R18 10000000000000000.0 in JSON", 0, (), {}, answered("10000000000000000.0"),
         trained="10000000000000000.0<|im_end|>"),
    Case("R19 a nested value", 0, (), {"data.prompt": "{translation.en}", "data.response": "{translation.de}"},
         table(translation=lambda i: {"en": f"x {i}", "de": "y"}), trained="y<|im_end|>"),
    Case("R19 a nested value in JSON text", 0, (), {
        "data.prompt": "{translation.en}", "data.filters": [{"column": "translation.n", "min": 1}],
        "data.split": {"valid": 0.2, "test": 0.3, "by": "translation.n"},
    }, table(translation=lambda i: json.dumps({"en": f"x {i}", "n": i % 20}))),
    Case("R19 a nested value that does not exist", 3, ("`translation.en`", "rows.jsonl:1"),
         {"data.prompt": "{translation.em}"}, table(translation={"en": "x", "de": "y"})),
    Case("R19 JSON text that is broken", 3, ("1 x cell `translation` is not valid JSON", "rows.jsonl:1"),
         {"data.prompt": "{translation.en}"}, table(translation=lambda i: f'{{"en": "x {i}"{"}"[: i]}')),
    Case("R20 braces of JSON in a prompt", 2, ("{{", "}}"), {"data.prompt": '{"k": "{q}"}'}),
    Case("R33 RoBERTa as a language model", 2, ("causal",), {"model.base": "roberta", "data.task": "completion"}),
    Case("R33 BERT as a language model", 2, ("causal",), {"model.base": "bert", "data.task": "completion"}),
    Case("R08b an empty system column", 3, ("{s?}",), {"data.system": "{s}"}, table(s=half("Be brief.", ""))),
    Case("R11 a list in one line of a .jsonl", 3, (".json",), {}, json.dumps(table()).encode()),
    Case("R21 an escape in a prompt", 2, ("an escape character",), {"data.prompt": "\x1b[1m{q}"}),
    Case("R22 more tokens than rows of the embedding", 2, ("288", "embedding"), {"model.base": "short"},
         table(a="<think>x")),
    Case("R34 no room for an answer", 2, ("evaluate.max_new_tokens", "64"),
         {"model.base": "narrow", "data.task": "completion", "evaluate.max_new_tokens": 64}),
    Case("R37 a reference that is no JSON", 3, ("rows.jsonl:8",),
         {"data.split": {"column": "s"}, "evaluate.metrics": ["json_field_f1"], "evaluate.primary": "json_field_f1"},
         table(s=lambda i: "test" if i > 5 else "train", a=lambda i: "{'k': 1}" if i == 7 else '{"k": 1}')),
    Case("R39 three rows", 3, ("train 0, valid 1, test 2", "lower data.split.valid"), {}, table(3)),
    Case("R40 ChatML written by hand", 0, ("<|im_start|>",),
         {"data.task": "completion", "data.prompt": "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n"}),
    Case("R51 a gain in points", 2, ("promote.min_gain",), {"promote": {"model": "units", "min_gain": 5}}),
    Case("R51 a guard in points", 2, ("evaluate.guards", "max_drop", "0.02"),
         {"evaluate.guards": [{"metric": "exact_match", "max_drop": 2}]}),
    Case("W9 modules that do not exist", 2, ("tuning.target", "query"), {"tuning.target": ["query", "value"]}),
    Case("O11 one module that does not exist", 2, ("tuning.target", "nope"), {"tuning.target": ["q_proj", "nope"]}),
    Case("O19 a base in four bits of GPTQ", 2, ("gptq",), {"model.base": "gptq"}),
    Case("O19 a base in four bits of bitsandbytes", 2, ("bitsandbytes",), {"model.base": "bnb"}),
    Case("O21 a turn with train: false", 0, (), MESSAGES,
         [{"m": [*a["m"][:1], a["m"][1] | {"train": False}, *b["m"]]} for a,
         b in zip(chats("hi #", "BAD"), chats("again", "good"), strict=True)], trained="good<|im_end|>"),
    Case("W13 a metric that raises", 2, ("mine.py",),
         {"evaluate.metrics": ["mine:broken"], "evaluate.primary": "mine:broken"}),
    Case("R44 UTF-16", 3, ("iconv -f UTF-16",), {}, lines(table()).decode().encode("utf-16")),
    Case("R44 a byte order mark and CRLF", 0, (), {}, b"\xef\xbb\xbf" + lines(table()).replace(b"\n", b"\r\n")),
    Case("R44 a semicolon between cells", 3, (";",), {"data.source.file": "rows.csv"},
         b"q;a\n" + b"".join(b"Say %d;x\n" % i for i in range(40)), "rows.csv"),
    Case("R52 a base without its owner", 2, ("gpt2",), {"model.base": "gpt2"}),
    Case("W10 not worse than", 0, (), {"promote": {"model": "units", "min_gain": -0.5}}),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in PLANNED])
def test_plan(case: Case, models: Callable[[str], Path], tunesmith: Command) -> None:
    Path("mine.py").write_text("def broken(predictions, references):\n    return [1 / 0 for _ in predictions]\n")
    recipe = write(case, models)
    planned = tunesmith("plan", recipe)
    assert planned.code == case.code, planned.output
    assert [part for part in case.expected if part not in planned.output] == [], planned.output
    if case.code == 3:
        assert "hint:" in planned.output
    if case.trained or case.prompt:
        [shown] = json.loads(tunesmith("show", recipe, "--rows", 1, "--json").out)
        learned = "".join(one["text"] for one in shown["tokens"] if one["trained"])
        assert case.trained in (None, learned)
        read = "".join(one["text"] for one in shown["tokens"])
        assert [part for part in case.prompt if part not in read] == []


def verdict_files(base: Rows, tuned: Rows) -> tuple[str, str]:
    """Write two files of scores and return their names."""
    Path("base.jsonl").write_bytes(lines(base))
    Path("tuned.jsonl").write_bytes(lines(tuned))
    return "base.jsonl", "tuned.jsonl"


def scored(count: int = 40, **columns: Any) -> Rows:
    """Return rows of scores; a column is a value or a function of the row's number."""
    return [{key: value(i) if callable(value) else value for key, value in columns.items()} for i in range(count)]


VERDICTS = [
    ("R36 a lower perplexity", 0, {"verdict": "better"}, scored(perplexity=12.0), scored(perplexity=9.0), ()),
    ("R36 a lower wer", 0, {"verdict": "better"}, scored(wer=0.4), scored(wer=0.2), ()),
    ("R36 a higher loss", 0, {"verdict": "not_better"}, scored(loss=1.2), scored(loss=2.4), ()),
    ("R36 a metric of one's own, told", 0, {"verdict": "better"}, scored(pain=5), scored(pain=3),
     ("--lower-is-better",)),
    ("O18 three groups", 0, {"verdict": "cannot_tell", "groups": 3, "rows": 60},
     scored(60, id=str, group=lambda i: i % 3, s=0), scored(60, id=str, s=1), ()),
    ("O18 eight groups", 0, {"verdict": "better", "groups": 8}, scored(64, id=str, group=lambda i: i % 8, s=0),
     scored(64, id=str, s=1), ()),
    ("R49 an id twice", 3, ("id",), scored(id=lambda i: i, s=0), scored(id=lambda i: i // 2, s=1), ()),
    ("an answer in forty that failed", 0, {"verdict": "better", "rows": 39, "failed": 1}, scored(id=str, s=0),
     scored(id=str, s=1, failed=lambda i: i < 1), ()),
    ("a quarter of the answers failed", 0, {"verdict": "cannot_tell", "failed": 10}, scored(id=str, s=0),
     scored(id=str, s=1, failed=lambda i: i < 10), ()),
    ("R49 ids of two types", 3, ("`id`", "text", "number"), scored(id=lambda i: i, s=0), scored(id=str, s=1), ()),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case[1:], id=case[0]) for case in VERDICTS])
def test_verdicts_of_files(case: tuple[int, Any, Rows, Rows, tuple[str, ...]], tunesmith: Command) -> None:
    code, expected, base, tuned, options = case
    done = tunesmith("verdict", *verdict_files(base, tuned), *options, *(["--json"] if code == 0 else []))
    assert done.code == code, done.output
    if code:
        assert [part for part in expected if part not in done.output] == []
    else:
        assert {key: json.loads(done.out)[key] for key in expected} == expected


SCORED = [
    ("R61 neither text", 3, ("s.jsonl:1", "prediction"), "rougeL", lines([{"prediction": None, "reference": "a"}]),
     "s.jsonl"),
    ("R16 ROUGE of Chinese", 0, ("1.0000",), "rougeL", lines([{"prediction": HAPPY, "reference": HAPPY}] * 3),
     "s.jsonl"),
    ("R61 a JSON list", 3, ("jq",), "rougeL", json.dumps([{"prediction": "a", "reference": "a"}]).encode(),
     "s.json"),
    ("R61 compressed", 3, ("gzip",), "rougeL", gzip.compress(lines([{"prediction": "a", "reference": "a"}])),
     "s.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case[1:], id=case[0]) for case in SCORED])
def test_score(case: tuple[int, tuple[str, ...], str, bytes, str], tunesmith: Command) -> None:
    code, told, metrics, content, file = case
    Path(file).write_bytes(content)
    done = tunesmith("score", file, "--metrics", metrics)
    assert done.code == code, done.output
    assert [part for part in told if part not in done.output] == [], done.output
