"""What real users ran into, each as one line: the input, the exit code, and the words or the value that matter.

Most cases end in `plan` or `show`; those that need a trained model train a tiny one for two steps.
"""

import gzip
import io
import json
import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.tiny import CHATML, THINKING, config, save_plain_model, tokenizer

from tunesmith import cli

Rows = list[dict[str, Any]]
WORDS = ("one", "two", "red", "blue", "cat", "dog", "sun")
BASE: dict[str, Any] = {
    "name": "c",
    "model": {"base": "tiny", "precision": "fp32"},
    "data": {
        "source": {"file": "rows.jsonl"}, "task": "chat", "prompt": "{q}", "response": "{a}",
        "split": {"valid": 0.2, "test": 0.3},
    },
    "tuning": {"method": "lora", "rank": 4, "alpha": 8},
    "train": {"learning_rate": 0.01, "max_steps": 2, "examples_per_step": 2},
    "evaluate": {"metrics": ["exact_match"], "primary": "exact_match", "rows": 10, "max_new_tokens": 8},
}  # fmt: skip
QUANTIZED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "bnb": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}
MESSAGES = {"data.prompt": ..., "data.response": ..., "data.messages": "m"}


def table(count: int = 40, **columns: Any) -> Rows:
    """Return rows {q, a, ...}; a column is a value, or a function of the row's number, or `...` to leave it out."""
    made: Rows = []
    for i in range(count):
        first, second = WORDS[i % 7], WORDS[i // 7 % 7]
        row = {"q": f"Say {first} and {second}, {i}", "a": f"{second} {first}", **columns}
        row = {key: value(i) if callable(value) else value for key, value in row.items()}
        made.append({key: value for key, value in row.items() if value is not ...})
    return made


def chats(*contents: Any, **last: Any) -> Rows:
    """Return rows with a column `m` of turns, user first; `#` is the row's number, `last` joins the last turn."""

    def turns(i: int) -> list[dict[str, Any]]:
        told = [text.replace("#", str(i)) if isinstance(text, str) else text for text in contents]
        found = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(told)]
        found[-1].update(last)
        return found

    return [{"m": turns(i)} for i in range(40)]


def lines(rows: Rows) -> bytes:
    """Return rows as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def answered(value: str) -> bytes:
    """Return JSONL whose answers are this text of JSON."""
    return "".join(f'{{"q": "Say {i}", "a": {value}}}\n' for i in range(40)).encode()


@dataclass(frozen=True)
class Case:
    """What a recipe (by its differences from BASE) with some rows must lead to."""

    name: str
    code: int
    told: tuple[str, ...] = ()  # parts of what `plan` prints
    changes: dict[str, Any] = field(default_factory=dict)  # dotted key -> value; `...` removes the key
    rows: Rows | bytes = field(default_factory=table)
    file: str = "rows.jsonl"
    learned: str | None = None  # what `show` says is learned of the first row
    asked: tuple[str, ...] = ()  # parts of what `show` says the model reads of the first row


@cache
def model(folder: Path, kind: str) -> Path:
    """Return a tiny model's folder, made when it is first asked for."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    path = folder / kind
    if kind == "plain":
        return save_plain_model(path, "llama")
    made = tokenizer(STRICT if kind == "strict" else THINKING if kind == "thinking" else CHATML)
    shape = config(kind if kind in ("roberta", "bert") else "llama")
    if kind == "short":  # fewer rows in the embedding than the tokenizer has tokens
        shape.vocab_size = len(made) - 2
    if kind == "narrow":
        shape.max_position_embeddings = 64
    torch.manual_seed(0)
    masked = kind in ("roberta", "bert")
    (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_config(shape).save_pretrained(path)
    made.save_pretrained(path)
    if kind in QUANTIZED:
        written = json.loads((path / "config.json").read_text())
        written["quantization_config"] = QUANTIZED[kind]
        (path / "config.json").write_text(json.dumps(written))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny models by name."""
    folder = tmp_path_factory.mktemp("models")
    return lambda kind: model(folder, kind)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: object
    out: str
    said: str  # both streams


Command = Callable[..., Done]


@pytest.fixture
def tunesmith(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in this process and in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        return Done(ended.value.code, seen.out, seen.out + seen.err)

    return command


def write(case: Case, models: Callable[[str], Path], folder: Path = Path()) -> Path:
    """Write the recipe and the rows of a case; return the recipe's path."""
    sections = deepcopy(BASE)
    for key, value in case.changes.items():
        node = sections
        *above, last = key.split(".")
        for name in above:
            node = node.setdefault(name, {})
        if value is ...:
            del node[last]
        else:
            node[last] = value
    base = sections["model"]["base"]
    if base in MODELS:
        sections["model"]["base"] = str(models(base))
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    YAML().dump(sections, text)
    (folder / "recipe.yaml").write_text(text.getvalue(), encoding="utf-8")
    (folder / case.file).write_bytes(case.rows if isinstance(case.rows, bytes) else lines(case.rows))
    return folder / "recipe.yaml"


MODELS = ("tiny", "plain", "strict", "thinking", "short", "narrow", "roberta", "bert", "gptq", "bnb")
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + CHATML.removeprefix("{% for m in messages %}")
)


def half(one: Any, other: Any) -> Callable[[int], Any]:
    """Return what makes one value for odd rows and another for even ones."""
    return lambda i: one if i % 2 else other


HAPPY = "\u6211\u4eca\u5929\u5f88\u9ad8\u5174"
ROUGE = {"evaluate.metrics": ["rougeL"], "evaluate.primary": "rougeL"}
SYSTEM = {"role": "system", "content": ""}
CONTROL = "spell control tokens of this model, such as <|im_end|>"
PLANNED = [
    Case("R01 an empty column", 3, ("`{n?}`", "20 of 40"), {"data.prompt": "{q}\n{n}"}, table(n=half("", "note"))),
    Case("R01 an optional column", 0, (), {"data.prompt": "{q}\n\n{n?}"}, table(n=half("note", "")),
         asked=("Say one and one, 0<|im_end|>",)),
    Case("R02 a key left out", 3, ("`{n?}`", "20 of 40"), {"data.prompt": "{q}\n{n}"}, table(n=half(..., "note"))),
    Case("R02 an optional key left out", 0, (), {"data.prompt": "{q}\n{n?}"}, table(n=half("note", ...))),
    Case("R02 an optional column that no row has", 3, ("`m`",), {"data.prompt": "{q}\n{m?}"}),
    Case("R02b a filter on a key left out", 0, ("filtered 20",), {
        "data.filters": [{"column": "n", "equals": "x"}], "data.split": {"valid": 0, "test": 0.4},
    }, table(n=half(..., "x"))),
    Case("R03 ShareGPT", 3, ("ShareGPT", "role"), MESSAGES,
         [{"m": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}] * 40),
    Case("R03 ShareGPT in another column", 3, ("ShareGPT", "messages: talk"), MESSAGES,
         [{"talk": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}] * 40),
    Case("R04 content in parts", 3, ("is a list",), MESSAGES, chats([{"type": "text", "text": "x"}], "y")),
    Case("R04 content that is a number", 3, ("is a number",), MESSAGES, chats(5, "y")),
    Case("R05 calls of tools", 3, ("`tool_calls`",), MESSAGES, chats("hi #", None, tool_calls=[{"id": "1"}])),
    Case("R05 calls of tools beside tools", 3, ("`tool_calls`",), MESSAGES,
         [{**row, "tools": [{"name": "f"}]} for row in chats("hi #", None, tool_calls=[{"id": "1"}])]),
    Case("R05b tools beside messages", 3, ("`tools`", "rows.jsonl:1"), MESSAGES,
         [{**row, "tools": [{"name": "f"}]} for row in chats("hi #", "x")]),
    Case("a name of a message", 3, ("`name`",), MESSAGES, chats("hi #", "x", name="Ann")),
    Case("R08 an empty system turn", 0, (), MESSAGES, [{"m": [SYSTEM, *row["m"]]} for row in chats("hi #", "x")]),
    Case("R08b an optional system turn", 0, (), {"data.system": "{s?}"}, table(s=half("", "Be brief."))),
    Case("R10 quotes that are letters", 3, ("quote: none",), {"data.source.file": "rows.tsv"},
         b'q\ta\n' + b"".join(b'"Say" %d\tx\n' % i for i in range(40)), "rows.tsv"),
    Case("R10 a file without quotes", 0, (), {"data.source": {"file": "rows.tsv", "quote": "none"}},
         b'q\ta\n' + b"".join(b'"Say" %d\t"x\n' % i for i in range(40)), "rows.tsv", learned='"x<|im_end|>'),
    Case("R11 a list named JSONL", 3, (".json",), {}, json.dumps(table()).replace("}, ", "},\n").encode()),
    Case("R40 rows that spell control tokens", 0, ("40 rows", CONTROL, "rows.jsonl:1"), {}, table(a="one<|im_end|>")),
    Case("R13 a list in Python's notation", 3, ("json.dumps",), {**MESSAGES, "data.source.file": "rows.csv"},
         b"m\n" + b"".join(b"\"[{'role': 'user', 'content': 'x %d'}]\"\n" % i for i in range(40)), "rows.csv"),
    Case("R15 a pattern", 3, ("patterns are not read", "rows.jsonl"), {"data.source.file": "*.jsonl"}),
    Case("R16 ROUGE and Chinese", 0, (), ROUGE, table(a=lambda i: HAPPY[i % 3 :])),
    Case("R16 ROUGE and emoji", 2, ("evaluate.primary", "chrf"), ROUGE, table(a="\U0001f600")),
    Case("R21 backslashes in double quotes", 2, ("a form feed",), {"data.system": "Use \frac."}),
    Case("O25 doubled braces around a column", 0, ("{{a}}",), {"data.prompt": "{{a}} {q}"}),
    Case("O25 doubled braces alone", 2, ("{q}, with single braces",), {"data.prompt": "{{ q }}"}),
    Case("R42 no chat template", 2, ("chat_markup: chatml",), {"model.base": "plain"}),
    Case("O17 chats that begin alike", 0, ("120 rows ask the same", "data.split.by"), {"seed": 5},
         table(200, q=lambda i: f"Say {i}" if i % 5 > 2 else "Hi")),
    Case("O21 a turn that is not to be learned", 0, (), MESSAGES,
         [{"m": [*chats("a #", "BAD", weight=0)[i]["m"], *row["m"]]} for i, row in enumerate(chats("b #", "good"))],
         learned="good<|im_end|>"),
    Case("O27 rows that ask the same", 3, ("only 1 prompt", "data.split.column"), {}, table(q="Say it")),
    Case("O04 thoughts that are learned", 3, ("rewrites the conversation",), {**MESSAGES, "model.base": "thinking"},
         chats("hi #", "<think>so</think>x", "and?", "y")),
    Case("O04 thoughts that are not learned", 0, (), {
        **MESSAGES, "model.base": "thinking", "data.train_on": "last",
    }, chats("hi #", "<think>so</think>x", "and?", "y"), learned="y<|im_end|>"),
    Case("rows that are too long", 3, ("too_long: cut", "the longest row"), {"data.max_tokens_per_example": 8}),
    Case("Alpaca's columns", 3, ("Alpaca",), {}, [{"instruction": f"x {i}", "output": "y"} for i in range(40)]),
    Case("R02b a filter on a column that no row has", 3, ("`b`",), {"data.filters": [{"column": "b", "equals": "x"}]}),
    Case("R06 a role that is not known", 3, ("developer",), MESSAGES, chats("hi #", "x", role="developer")),
    Case("R07 an unanswered last question", 0, (), MESSAGES, chats("hi #", "x", "more?")),
    Case("R07 two questions in a row", 3, ("roles must alternate",), {**MESSAGES, "model.base": "strict"},
         [{"m": [{"role": "user", "content": f"a {i}"}, *turns["m"]]} for i, turns in enumerate(chats("b", "c"))]),
    Case("R15 a folder", 3, ("hub:",), {"data.source.file": "."}),
    Case("R17 truth values", 0, (), {}, table(a=True), learned="true<|im_end|>"),
    Case("R18 12.50 in JSON", 0, (), {}, answered("12.50"), learned="12.50<|im_end|>"),
    Case("R18 1E3 in JSON", 0, (), {}, answered("1E3"), learned="1E3<|im_end|>"),
    Case("R18 10000000000000000.0 in JSON", 0, (), {}, answered("10000000000000000.0"),
         learned="10000000000000000.0<|im_end|>"),
    Case("R19 a nested value", 2, ("translation",), {"data.prompt": "{translation.en}"},
         table(translation={"en": "x", "de": "y"})),
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
         b in zip(chats("hi #", "BAD"), chats("again", "good"), strict=True)], learned="good<|im_end|>"),
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
def test_plan_tells(case: Case, models: Callable[[str], Path], tunesmith: Command) -> None:
    Path("mine.py").write_text("def broken(predictions, references):\n    return [1 / 0 for _ in predictions]\n")
    recipe = write(case, models)
    planned = tunesmith("plan", recipe)
    assert planned.code == case.code, planned.said
    assert [part for part in case.told if part not in planned.said] == []
    if case.code == 3:
        assert "hint:" in planned.said
    if case.learned or case.asked:
        [shown] = json.loads(tunesmith("show", recipe, "--rows", 1, "--json").out)
        learned = "".join(one["text"] for one in shown["tokens"] if one["trained"])
        assert case.learned in (None, learned)
        read = "".join(one["text"] for one in shown["tokens"])
        assert [part for part in case.asked if part not in read] == []


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
    assert done.code == code, done.said
    if code:
        assert [part for part in expected if part not in done.said] == []
    else:
        assert {key: json.loads(done.out)[key] for key in expected} == expected


SCORED = [
    ("R61 neither text", 3, ("s.jsonl:1", "prediction"), "rougeL", lines([{"prediction": None, "reference": "a"}]),
     "s.jsonl"),
    ("R16 ROUGE of Chinese", 0, ("1.0000",), "rougeL", lines([{"prediction": HAPPY, "reference": HAPPY}] * 3),
     "s.jsonl"),
    ("R61 a JSON list", 3, ("JSONL",), "rougeL", json.dumps([{"prediction": "a", "reference": "a"}]).encode(),
     "s.json"),
    ("R61 compressed", 3, ("gzip",), "rougeL", gzip.compress(lines([{"prediction": "a", "reference": "a"}])),
     "s.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case[1:], id=case[0]) for case in SCORED])
def test_score(case: tuple[int, tuple[str, ...], str, bytes, str], tunesmith: Command) -> None:
    code, told, metrics, content, file = case
    Path(file).write_bytes(content)
    done = tunesmith("score", file, "--metrics", metrics)
    assert done.code == code, done.said
    assert [part for part in told if part not in done.said] == []


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


PROMOTED = {"promote": {"model": "loop", "min_gain": -0.99}}


@pytest.fixture(scope="module")
def finished(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its rows, its finished run `runs/a`, and the registry `registry` with loop@staging."""
    from tunesmith import run_recipe

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TUNESMITH_REGISTRY", str(folder / "registry"))
        changes = {**PROMOTED, "data.system": "Be brief.", "data.prompt": "Do: {q}"}
        case = Case("", 0, changes=changes)
        run_recipe(write(case, models), out="runs/a")
    return folder


@pytest.fixture
def moved(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, copied elsewhere; the current folder is it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("TUNESMITH_REGISTRY", str(tmp_path / "registry"))
    return tmp_path


ASK = ("--max-new-tokens", 3)


def test_w2_rows_that_the_base_was_trained_on_are_told(moved: Path, tunesmith: Command) -> None:
    again = ("plan", "recipe.yaml", "model.base=run:runs/a", "data.prompt='Now do: {q}'")
    assert "was trained on" not in tunesmith(*again).said
    other = tunesmith(*again, "seed=5")
    assert other.code == 0
    assert "was trained on" in other.said
    assert tunesmith(*again, "seed=5", "data.leakage=stop").code == 3


def test_w2_two_prompts_are_judged_on_the_same_rows(moved: Path, tunesmith: Command) -> None:
    assert tunesmith("run", "recipe.yaml", "--out", "runs/b", "data.prompt='Now do: {q}'", "promote=null").code == 0
    files = [f"runs/{name}/evaluate/tuned/scores.jsonl" for name in ("a", "b")]
    done = tunesmith("verdict", *files, "--metric", "exact_match", "--json")
    assert done.code == 0, done.said
    ids = [[json.loads(line)["id"] for line in Path(file).read_text().splitlines()] for file in files]
    assert sorted(ids[0]) == sorted(ids[1])
    assert json.loads(done.out)["rows"] == len(ids[0]) > 5


def test_w7_what_only_judges_does_not_train_again(moved: Path, tunesmith: Command) -> None:
    trained = tree(Path("runs/a/train"))
    text = Path("recipe.yaml").read_text()
    Path("recipe.yaml").write_text(text.replace("rows: 10", "rows: 8"))
    done = tunesmith("run", "recipe.yaml", "--out", "runs/a", "--json")
    assert done.code == 0, done.said
    assert json.loads(done.out)["verdict"]["primary"]["rows"] == 8
    assert tree(Path("runs/a/train")) == trained


def test_w2_a_reworded_prompt_keeps_rows_in_their_splits(models: Callable[[str], Path], tunesmith: Command) -> None:
    found = []
    for number, prompt in enumerate(("{q}", "Please: {q}")):
        write(Case("", 0, changes={"data.prompt": prompt}), models)
        assert tunesmith("prepare", "recipe.yaml", "--out", f"runs/{number}").code == 0
        examples = Path(f"runs/{number}/prepare/examples/test.jsonl").read_text().splitlines()
        found.append([(one["id"], one["row"]) for one in map(json.loads, examples)])
    assert found[0] == found[1]


def test_o02_a_base_relative_to_the_recipe_opens_from_anywhere(
    models: Callable[[str], Path], tunesmith: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models("tiny"), "models/base")
    write(Case("", 0, changes={**PROMOTED, "model.base": "../models/base"}), models, Path("exp"))
    assert tunesmith("run", "exp/recipe.yaml", "--out", "runs/a").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("loop@staging", f"run:{tmp_path}/runs/a"):
        done = tunesmith("generate", name, "--prompt", "hi", *ASK)
        assert done.code == 0, done.said


def test_o30_chat_answers_a_second_question(
    models: Callable[[str], Path], tunesmith: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("cat\ndog\n\n"))
    done = tunesmith("chat", models("thinking"), *ASK)
    assert done.code == 0, done.said


@pytest.mark.parametrize(
    ("name", "arguments", "code", "told"),
    [
        ("O22 TRL's word", ("plan", "recipe.yaml", "train.per_device_train_batch_size=4"), 2,
         ("examples_per_step", "micro_batch")),
        ("O03 a run's folder", ("generate", "runs/a", "--prompt", "hi", *ASK), 0, ()),
        ("O22 a key without its section", ("plan", "recipe.yaml", "epochs=3"), 2, ("train.epochs",)),
        ("O22 another word", ("plan", "recipe.yaml", "tuning.lora_r=4"), 2, ("rank",)),
        ("O22 a file as --out", ("plan", "recipe.yaml", "--out", "rows.jsonl"), 2, ("rows.jsonl",)),
        ("a name without its alias", ("plan", "recipe.yaml", "model.base=loop"), 2, ("loop@staging",)),
        ("score without a file", ("score",), 2, ("FILE",)),
        ("two runs to compare", ("compare", "runs/a", "runs/b"), 2, ("compare",)),
    ],
)  # fmt: skip
def test_commands(
    name: str, arguments: tuple[Any, ...], code: int, told: tuple[str, ...], moved: Path, tunesmith: Command
) -> None:
    done = tunesmith(*arguments)
    assert done.code == code, (name, done.said)
    assert [part for part in told if part not in done.said] == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_r29_a_terminal_of_any_encoding(
    encoding: str, moved: Path, tunesmith: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (
        ("plan", "recipe.yaml"),
        ("show", "recipe.yaml", "--rows", 1),
        ("run", "runs/a"),
        ("compare", "runs/a"),
    ):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert raw.getvalue()


def test_r27_a_user_without_a_home_is_told_what_to_set(
    models: Callable[[str], Path], tunesmith: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pwd

    def nobody(_uid: int) -> None:
        raise KeyError("uid not found")

    recipe = write(Case("", 0), models)
    for name in ("HOME", "TUNESMITH_CACHE", "TUNESMITH_REGISTRY", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    done = tunesmith("plan", recipe)
    assert done.code in (0, 2), done.said
    assert done.code == 0 or "TUNESMITH_CACHE" in done.said
    assert tunesmith("models").code == 2


def test_o33_equal_recipes_in_two_folders_are_two_runs(models: Callable[[str], Path], tunesmith: Command) -> None:
    found = {}
    for name, count in (("one", 40), ("two", 90)):
        recipe = write(Case("", 0, rows=table(count)), models, Path(name))
        assert tunesmith("prepare", recipe).code == 0
        found[name] = json.loads(tunesmith("plan", recipe, "--json").out)
        assert sum(found[name]["counts"].values()) == count
    assert found["one"]["run"] != found["two"]["run"]


def test_r31_a_linked_recipe_reads_one_file_of_rows(models: Callable[[str], Path], tunesmith: Command) -> None:
    write(Case("", 0, rows=table(20)), models, Path("archive"))
    write(Case("", 0, rows=table(40)), models, Path("now")).unlink()
    link = Path("now/current.yaml")
    link.symlink_to("../archive/recipe.yaml")
    planned = json.loads(tunesmith("plan", link, "--json").out)["counts"]
    shown = json.loads(tunesmith("show", link, "--rows", 99, "--json").out)
    assert tunesmith("prepare", link, "--out", "runs/a").code == 0
    written = json.loads(Path("runs/a/prepare/manifest.json").read_text())["counts"]
    assert {split: written[split] for split in planned} == planned
    assert len(shown) == planned["train"]


@pytest.mark.parametrize("name", ["C#", "a@b", "100%", "[x] {y}", "run:1"])
def test_r23_a_folder_of_any_name(
    name: str, models: Callable[[str], Path], tunesmith: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    assert tunesmith("run", write(Case("", 0), models), "--out", "runs/a").code == 0
    assert tunesmith("generate", f"run:{tmp_path / name / 'runs/a'}", "--prompt", "hi", *ASK).code == 0


def test_o34_a_renamed_project_goes_on(models: Callable[[str], Path], tunesmith: Command) -> None:
    assert tunesmith("train", write(Case("", 0), models, Path("old")), "--out", "runs/a").code == 0
    Path("old").rename("new")
    trained = tree(Path("runs/a/train"))
    assert tunesmith("run", "new/recipe.yaml", "--out", "runs/a").code == 0
    assert tree(Path("runs/a/train")) == trained


def test_o34_rows_are_not_needed_after_they_were_read(models: Callable[[str], Path], tunesmith: Command) -> None:
    assert tunesmith("prepare", write(Case("", 0), models), "--out", "runs/a").code == 0
    Path("rows.jsonl").unlink()
    assert tunesmith("run", "runs/a").code == 0


def test_a_moved_run_is_judged_and_promoted(moved: Path, tunesmith: Command) -> None:
    shutil.rmtree(moved / "registry")
    Path("rows.jsonl").unlink()
    assert tunesmith("evaluate", "runs/a", "evaluate.rows=8").code == 0
    assert tunesmith("promote", "runs/a").code == 0
    assert tunesmith("generate", "loop@staging", "--prompt", "hi", *ASK).code == 0


def test_r38_a_refused_override_leaves_every_file_as_it_was(moved: Path, tunesmith: Command) -> None:
    before = tree(Path("runs/a"))
    for verb in ("run", "train", "evaluate", "prepare", "plan"):
        refused = tunesmith(verb, "runs/a", "train.learning_rate=5e-3")
        assert refused.code == 2, (verb, refused.said)
        assert "train.learning_rate" in refused.said
        assert tree(Path("runs/a")) == before, verb
    assert tunesmith("run", "runs/a").code == 0


def test_o01_training_on_ones_own_alias_gives_a_chain(moved: Path, tunesmith: Command) -> None:
    text = Path("recipe.yaml").read_text().replace("name: c\n", "name: again\n")
    Path("again.yaml").write_text(
        "\n".join("  base: loop@staging" if "base:" in one else one for one in text.splitlines())
    )
    assert tunesmith("run", "again.yaml", "--out", "runs/b").code == 0
    assert json.loads(tunesmith("models", "loop", "--json").out)["moves"][-1]["to"] == 2
    for name in ("loop@staging", "loop@2", "loop@1", "run:runs/b"):
        assert tunesmith("generate", name, "--prompt", "hi", *ASK).code == 0, name
    assert tunesmith("run", "again.yaml", "--out", "runs/b").code == 0
    assert tunesmith("plan", "again.yaml").code == 0


def test_o16_a_file_more_beside_the_base_changes_nothing(models: Callable[[str], Path], tunesmith: Command) -> None:
    shutil.copytree(models("tiny"), "base")
    write(Case("", 0, changes={**PROMOTED, "model.base": "base"}), models)
    assert tunesmith("train", "recipe.yaml", "--out", "runs/a").code == 0
    for name in ("README.md", ".DS_Store"):
        Path("base", name).write_text("hello")
    assert tunesmith("run", "recipe.yaml", "--out", "runs/a").code == 0
    assert tunesmith("generate", "loop@staging", "--prompt", "hi", *ASK).code == 0


def test_w4_generate_asks_as_the_recipe_does(moved: Path, tunesmith: Command) -> None:
    Path("ask.jsonl").write_text('{"q": "hi"}\n')
    found = []
    for asking in (("--prompt", "hi"), ("--row", "q=hi"), ("--rows", "ask.jsonl")):
        done = tunesmith("generate", "runs/a", *asking, *ASK, "--json")
        assert done.code == 0, done.said
        found.append(json.loads(done.out.strip().splitlines()[0]) if asking[0] == "--rows" else json.loads(done.out)[0])
    assert len({one.get("answer", one.get("prediction")) for one in found}) == 1
    assert all(part in found[-1]["prompt"] for part in ("Be brief.", "Do: hi"))


def test_w7_what_only_judges_is_no_other_run(models: Callable[[str], Path], tunesmith: Command) -> None:
    found = set()
    for changes in ({}, {"evaluate.rows": 9}, PROMOTED, {"evaluate.metrics": ["exact_match", "bleu"]}):
        recipe = write(Case("", 0, changes=changes), models)
        found.add(json.loads(tunesmith("plan", recipe, "--json").out)["run"])
    assert len(found) == 1
