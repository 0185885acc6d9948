"""What `tunesmith show` says about rows: the same tokens that training reads, and nothing that a terminal obeys."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import DamagedFile, DataError, RecipeError
from tunesmith.core.files import write_text
from tunesmith.core.rundir import RunDir
from tunesmith.data import process_rows
from tunesmith.plan.inspect import inspect_rows
from tunesmith.recipe.load import load_recipe
from tunesmith.report.tokens import render_text, write_html

HOSTILE = "a\tb <|im_end|> \x1b[31mred\x07 </span><script>alert(1)</script> \u202egnp"


@pytest.fixture
def recipe(tmp_path: Path, tokenizer_folder: Path) -> Path:
    return write_recipe(tmp_path, tokenizer_folder)


@pytest.fixture
def run(recipe: Path) -> RunDir:
    """A run that is prepared, and nothing else."""
    from tunesmith.pipeline.runner import run_recipe

    return run_recipe(recipe, out=recipe.parent / "run", until="prepare")


def token(text: str, *, trained: bool = False, special: bool = False) -> dict[str, Any]:
    return {"text": text, "id": 1, "trained": trained, "special": special}


def sample(*tokens: dict[str, Any], **other: Any) -> dict[str, Any]:
    facts = {"split": "train", "row": 3, "where": "rows.jsonl:3", "block": None, "id": "x", "status": "kept"}
    facts |= {"part": "row", "prompt_tokens": 2}
    return {**facts, "tokens": list(tokens), **other}


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


# --- which rows ---


def test_a_recipe_shows_the_first_rows_of_the_split(recipe: Path) -> None:
    found = inspect_rows(recipe, rows=4, split="train")
    assert len(found) == 4
    assert {one["split"] for one in found} == {"train"}
    assert [one["row"] for one in found] == sorted(one["row"] for one in found)
    assert [one["where"] for one in found] == [f"rows.jsonl:{one['row']}" for one in found]


def test_only_the_answer_and_its_end_are_learned(recipe: Path) -> None:
    [found] = inspect_rows(recipe, rows=1, split="test")
    row = json.loads((recipe.parent / "rows.jsonl").read_text(encoding="utf-8").splitlines()[found["row"] - 1])
    learned = "".join(one["text"] for one in found["tokens"] if one["trained"])
    assert learned == row["answer"] + "<|im_end|>"
    prompt = "".join(one["text"] for one in found["tokens"][: found["prompt_tokens"]])
    assert prompt == f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
    assert [one["text"] for one in found["tokens"] if one["special"]] == ["<|im_start|>", "<|im_end|>"] * 2


def test_overrides_hold(recipe: Path) -> None:
    [found] = inspect_rows(recipe, ["data.system='Be brief.'"], rows=1, split="train")
    assert "".join(one["text"] for one in found["tokens"]).startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_no_more_of_the_source_is_read_than_asked(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    whole = process_rows.read_rows

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal read
        for row in whole(*args, **kwargs):
            read += 1
            yield row

    monkeypatch.setattr(process_rows, "read_rows", counted)
    last = inspect_rows(recipe, rows=2, split="train")[-1]
    assert read == last["row"] < 60


def test_a_cut_row_says_so(recipe: Path) -> None:
    limits = ["data.max_tokens_per_example=36", "data.too_long=truncate", "data.max_dropped_fraction=0.9"]
    [found] = inspect_rows(recipe, limits, rows=1, split="train")
    assert (found["status"], len(found["tokens"])) == ("cut", 36)
    assert "36 tokens" in render_text([found], colour=False)
    assert ", cut" in render_text([found], colour=False)


def test_fewer_rows_than_asked_are_all_shown(recipe: Path) -> None:
    assert 0 < len(inspect_rows(recipe, rows=10_000, split="valid")) < 60


@pytest.mark.parametrize(("split", "hint"), [("tset", "did you mean `test`?"), ("x", "known are train, valid, test")])
def test_an_unknown_split_names_those_there_are(recipe: Path, split: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        inspect_rows(recipe, rows=1, split=split)
    assert caught.value.hint == hint


def test_what_cannot_be_shown_says_why(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="0 rows"):
        inspect_rows(recipe, rows=0)
    with pytest.raises(DataError, match="no rows for `valid`"):
        inspect_rows(recipe, ["data.split.valid=0"], split="valid")
    with pytest.raises(DataError, match="no column `nope`"):
        inspect_rows(recipe, ["data.prompt='{nope}'"])
    with pytest.raises(RecipeError, match="is a folder"):
        inspect_rows(recipe.parent)


# --- a run ---


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_prepared_run_shows_what_its_recipe_showed(run: RunDir, recipe: Path, split: str) -> None:
    before = inspect_rows(recipe, rows=3, split=split)
    (recipe.parent / "rows.jsonl").unlink()  # so nothing but the run can be read
    assert inspect_rows(run.path, rows=3, split=split) == before


def test_a_run_that_is_not_prepared_is_read_from_its_source(run: RunDir, recipe: Path) -> None:
    before = inspect_rows(run.path, rows=2)
    (run.stage("prepare") / "manifest.json").unlink()
    assert inspect_rows(run.path, rows=2) == before
    assert inspect_rows(run.path, ["data.split.test=0.5"], rows=2) != []


def test_changes_to_a_prepared_run_are_refused(run: RunDir) -> None:
    with pytest.raises(RecipeError, match="no effect"):
        inspect_rows(run.path, ["data.split.test=0.5"])


def test_rows_are_not_decoded_by_another_tokenizer(run: RunDir, tmp_path: Path) -> None:
    from tests.support.tiny import make_tokenizer

    other = tmp_path / "other"
    make_tokenizer(markup=("<other>",)).save_pretrained(other)
    (other / "config.json").write_text("{}", encoding="utf-8")
    base = load_recipe(run.resolved_recipe).model.base
    rewrite(run.resolved_recipe, lambda text: text.replace(base, str(other)))
    with pytest.raises(RecipeError, match="not the one the rows were prepared with"):
        inspect_rows(run.path)


def test_damage_is_told(run: RunDir) -> None:
    rewrite(run.examples("train"), lambda text: text.split("\n", 1)[1])
    with pytest.raises(DamagedFile, match="do not match"):
        inspect_rows(run.path)
    run.tokens("train").write_bytes(b"not safetensors")
    with pytest.raises(DamagedFile, match="cannot be read"):
        inspect_rows(run.path)


# --- prompts and answers ---


def texts(found: list[dict[str, Any]]) -> list[str]:
    return ["".join(one["text"] for one in sample["tokens"]) for sample in found]


def test_prompts_are_shown_as_evaluation_sends_them(recipe: Path) -> None:
    found, learned = inspect_rows(recipe, rows=2, stage="evaluate"), inspect_rows(recipe, rows=2, split="test")
    assert [one["part"] for one in found] == ["prompt", "prompt"]
    for prompt, row in zip(found, learned, strict=True):
        assert prompt["tokens"] == row["tokens"][: row["prompt_tokens"]]
    with pytest.raises(RecipeError, match="asks about rows of `test`"):
        inspect_rows(recipe, split="valid", stage="evaluate")


def test_answers_are_shown_by_the_tokens_that_were_generated(run: RunDir) -> None:
    rows = inspect_rows(run.path, rows=3, stage="evaluate")
    ids = [one["id"] for one in rows[0]["tokens"]][3:7]
    for name, line in (("base", {"stopped": False, "error": None}), ("tuned", {"stopped": True, "error": None})):
        line |= {"id": rows[1]["id"], "ids": ids[:2] if name == "base" else ids}
        write_text(run.evaluation(name) / "generations.jsonl", json.dumps(line) + "\n" + '{"id": "half')
    found = inspect_rows(run.path, rows=3, stage="evaluate")
    assert [one["part"] for one in found] == ["prompt", "base", "tuned"]
    assert found[0] == rows[1]
    assert [[one["id"] for one in sample["tokens"]] for sample in found[1:]] == [ids[:2], ids]
    assert (run.evaluation("base") / "generations.jsonl").read_text().endswith("half")  # looking changes nothing
    shown = render_text(found, colour=False)
    assert "learned" not in shown
    assert f"({found[0]['where']}), answer of base  2 tokens, cut off at the token limit" in shown
    assert f"({found[0]['where']}), answer of tuned  4 tokens\n" in shown


def test_a_row_that_is_used_twice_is_shown_once(recipe: Path) -> None:
    from tunesmith.pipeline.runner import run_recipe

    (recipe.parent / "more.jsonl").write_text((recipe.parent / "rows.jsonl").read_text().replace("Say", "Tell"))
    both = "data.source=[{file: rows.jsonl, weight: 2}, {file: more.jsonl}]"
    prepared = run_recipe(recipe, [both], out=recipe.parent / "run", until="prepare")
    rows = [one["row"] for one in inspect_rows(prepared.path, rows=1000)]
    assert rows == [one["row"] for one in inspect_rows(recipe, [both], rows=1000)]
    assert len(rows) == len(set(rows))


# --- documents in blocks ---

BLOCKS = ("data={source: {file: rows.jsonl}, task: text, text: '{question} {answer}', max_tokens_per_example: 8, "
          "too_long: split, sample_prefix_tokens: 3, split: {valid: 0.15, test: 0.2}}")  # fmt: skip


def test_every_block_of_a_document_is_shown_by_its_number(recipe: Path) -> None:
    from tunesmith.pipeline.runner import run_recipe

    found = inspect_rows(recipe, [BLOCKS], rows=4)
    assert [one["block"] for one in found[:2]] == [[1, found[0]["block"][1]], [2, found[0]["block"][1]]]
    assert found[0]["row"] == found[1]["row"]
    assert found[0]["tokens"][-1]["id"] == found[1]["tokens"][0]["id"]
    assert [one["trained"] for one in found[1]["tokens"]] == [False] + [True] * (len(found[1]["tokens"]) - 1)
    assert f"({found[1]['where']}), block 2 of {found[1]['block'][1]}  8 tokens, 7 trained, prompt 3" in render_text(
        found, colour=False
    )
    prepared = run_recipe(recipe, [BLOCKS], out=recipe.parent / "run", until="prepare")
    assert inspect_rows(prepared.path, rows=4) == found
    asked = inspect_rows(prepared.path, rows=5, stage="evaluate")
    for prompt, row in zip(asked, inspect_rows(recipe, [BLOCKS], rows=5, split="test"), strict=True):
        assert prompt["block"] == row["block"]
        assert prompt["tokens"] == [{**one, "trained": False} for one in row["tokens"][: row["prompt_tokens"]]]


# --- as text and as HTML ---


def test_text_without_colour_marks_what_is_learned() -> None:
    tokens = [token("<s>", special=True), token("Say"), token(" it\n"), token("yes", trained=True)]
    text = render_text([sample(*tokens, token("</s>", trained=True, special=True))], colour=False)
    assert text.splitlines()[2:] == [
        "train row 3 (rows.jsonl:3)  5 tokens, 2 trained, prompt 2",
        "<s>\u00a6Say\u00a6 it\u21b5",
        "\u27e6yes\u00a6</s>\u27e7",
    ]
    assert "\x1b" not in text


def test_text_in_colour_marks_what_is_learned_and_what_is_special() -> None:
    text = render_text([sample(token("a"), token("b", trained=True), token("c", special=True))], colour=True)
    assert text.split("\n")[1] == "a\x1b[1;32;4mb\x1b[0m\x1b[2mc\x1b[0m"


def test_nothing_in_a_row_is_obeyed_by_the_terminal() -> None:
    rows = [sample(token(HOSTILE, trained=True), where="\x1b]0;title\x07.csv:1")]
    plain = render_text(rows, colour=False)
    assert not set(plain) & {"\x1b", "\x07", "\u202e"}
    assert "\u241b[31mred\u2407" in plain
    assert "a\u2192\tb" in plain
    assert (
        render_text(rows, colour=True).replace("\x1b[1m", "").replace("\x1b[1;32m", "").count("\x1b") == 2
    )  # two resets


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tokens: list[tuple[str, str]] = []
        self.open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        classes = dict(attrs).get("class") or ""
        self.open = classes if tag == "span" and "title" in dict(attrs) else ""

    def handle_data(self, data: str) -> None:
        if self.open:
            self.tokens.append((self.open, data))
            self.open = ""


def test_html_holds_every_token_and_runs_nothing(tmp_path: Path) -> None:
    tokens = [token("plain"), token(HOSTILE, trained=True), token("<|im_end|>", trained=True, special=True)]
    file = tmp_path / "new" / "rows.html"
    write_html([sample(*tokens), sample(token("second"))], file)
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    assert [kind for kind, _ in page.tokens] == ["k", "k t", "k t s", "k"]
    assert [text for _, text in page.tokens][::3] == ["plain", "second"]
    assert "</span><script>alert(1)</script>" in page.tokens[1][1]
    assert "script" not in page.tags
    assert page.tags.count("details") == 2
    assert "\x1b" not in file.read_text(encoding="utf-8")


def test_html_shows_more_rows_than_a_report_does(tmp_path: Path) -> None:
    write_html([sample(token(str(i))) for i in range(30)], tmp_path / "rows.html")
    assert (tmp_path / "rows.html").read_text(encoding="utf-8").count("<details") == 30


def test_html_of_a_very_long_row_says_how_much_is_left_out(tmp_path: Path) -> None:
    write_html([sample(*[token("x")] * 5000)], tmp_path / "rows.html")
    assert "3800 more tokens" in (tmp_path / "rows.html").read_text(encoding="utf-8")


def test_the_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "rows.html", "old")
    write_html([sample(token("new"))], tmp_path / "rows.html")
    assert "old" not in (tmp_path / "rows.html").read_text(encoding="utf-8")[:20]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.html"]
