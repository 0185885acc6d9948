"""Reading YAML: values by YAML 1.2, refused escapes, and files that are not recipes."""

import os
import time
from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.unit.recipe.conftest import RECIPE, Load, Problems, changed, line_of

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.load import RecipeProblems, dump_recipe, load_recipe
from tunesmith.recipe.schema import ChatData

# --- values ---


@pytest.mark.parametrize(
    ("written", "read"),
    [("2e-4", 2e-4), ("2.0E-4", 2e-4), (".5", 0.5), ("1", 1.0), ("1_000", 1000.0), ("0x10", 16.0)],
)
def test_numbers_in_every_notation(load: Load, written: str, read: float) -> None:
    assert load(changed("2e-4", written)).train.learning_rate == read


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n"])
def test_yes_no_on_off_are_text(load: Load, word: str) -> None:
    assert load(changed("name: viggo", f"name: {word}")).name == word


def test_leading_zero_is_not_octal(load: Load) -> None:
    assert load(RECIPE + "seed: 017\n").seed == 17
    assert load(RECIPE + "seed: 0o17\n").seed == 15


@pytest.mark.parametrize("date", ["2024-01-01", "2024-13-45", "2001-12-14t21:59:43.10-05:00", "2024-01-01 10:30:00"])
def test_dates_are_text(load: Load, date: str) -> None:
    assert load(changed("org/model", date)).model.base == date
    assert load(RECIPE, f"model.base={date}").model.base == date


def test_aliases_and_merges_are_expanded(load: Load) -> None:
    text = changed("valid: 0.1", "valid: &tenth 0.1\n    test: *tenth")
    assert load(text).data.split.test == 0.1
    text = changed("learning_rate: 2e-4", "<<: {epochs: 3}\n  learning_rate: 2e-4")
    assert load(text).train.epochs == 3


def test_byte_order_mark_and_crlf_are_ignored(load: Load) -> None:
    assert load(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode()) == load(RECIPE)


# --- escapes and control characters ---


@pytest.mark.parametrize(
    ("written", "escape"),
    [
        *((f"\\{word}", f"\\{word}") for word in ("boxed", "frac", "vec", "alpha", "epsilon", "right", "LaTeX", "Pr")),
        (r"snake\_case", r"\_case"), (r"\N", r"\N"), (r"\0", r"\0"),
    ],
)  # fmt: skip
def test_unintended_escapes_are_refused_with_their_line(load: Load, written: str, escape: str) -> None:
    for text in (
        changed('"Say {mr}"', f'"Say {{mr}} {written} x"'),
        changed('"Say {mr}"', f'"Say {{mr}}\n    {written} x"'),
    ):
        with raises(RecipeError, "yaml-escape", "single quotes", where=line_of(text, escape)):
            load(text)
    recipe = load(changed('"Say {mr}"', f"'Say {{mr}} {written}'"))
    assert isinstance(recipe.data, ChatData)
    assert recipe.data.prompt == f"Say {{mr}} {written}"
    with raises(RecipeError, "yaml-escape"):
        load(RECIPE, f'data.prompt="{{mr}} {written}"')
    # They are refused in regular expressions, too.
    with raises(RecipeError, "yaml-escape"):
        load(RECIPE, f'data.filters=[{{column: mr, matches: "{written}"}}]')


@pytest.mark.parametrize(
    "written", [r"\text", r"\textbf", r"\times", r"\theta", r"\frac", r"\nabla", r"\neq", r"\x07", r"\u2028"]
)
def test_control_characters_in_templates_are_refused(problems: Problems, load: Load, written: str) -> None:
    if written != r"\frac":
        [problem] = problems(changed('"Say {mr}"', f'"Say {{mr}} {written} x"'))
        where = line_of(RECIPE, '"Say {mr}"')
        assert (problem.where, problem.key, problem.code) == (where, "data.prompt", "yaml-escape")
    for template in ("system", "response"):
        with raises(RecipeProblems if written != r"\frac" else RecipeError, "yaml-escape"):
            load(RECIPE, f'data.{template}="{{mr}} {written}"')


def test_intended_line_breaks_and_tabs_are_kept(load: Load) -> None:
    for template in ("Name\tAge\n{mr}", "{mr}\n\nanswer", "a\n\ttan\t{mr}"):
        written = template.replace("\n", r"\n").replace("\t", r"\t")
        recipe = load(changed('"Say {mr}"', f'"{written}"'))
        assert isinstance(recipe.data, ChatData)
        assert recipe.data.prompt == template
        assert load(dump_recipe(recipe)) == recipe


# --- files that are not recipes ---


@pytest.mark.parametrize(
    ("content", "where", "code", "named"),
    [
        (RECIPE + "name: again\n", ":21", "not-yaml", '"name"'),
        (changed("rank: 8", "rank: 8\n  rank: 9"), ":13", "not-yaml", '"rank"'),
        (RECIPE + "\tx: 1\n", ":21", "not-yaml", ""),
        (changed("[rougeL, exact_match]", "[rougeL"), ":", "not-yaml", ""),
        (RECIPE + "---\nname: b\n", ":21", "not-yaml", "document"),
        (RECIPE + f"seed: {'9' * 5000}\n", "", "not-yaml", ""),
        (RECIPE.encode() + b"# \xff\n", ":21", "encoding", "UTF-8"),
        (RECIPE.encode("utf-16"), ":1", "encoding", "UTF-8"),
        (RECIPE.encode() + b"# \0\n", "", "not-yaml", "special characters"),
        ("", "", "not-yaml", "mapping"),
        ("- name: x\n", "", "not-yaml", "mapping"),
        ("just text\n", "", "not-yaml", "mapping"),
        ("%YAML 1.1\n---\n" + RECIPE, ":2", "unsupported-yaml", "1.2"),
        (changed("org/model", "!foo org/model"), ":2", "unsupported-yaml", "`!foo`"),
        (changed("org/model", '!!python/object/apply:os.system ["true"]'), ":2", "unsupported-yaml", "os.system"),
        (RECIPE + "x: " + "[" * 500 + "]" * 500 + "\n", ":21", "recipe-too-large", "16"),
        (RECIPE + "#" * (1 << 20), "", "recipe-too-large", "1,048,576"),
    ],
)
def test_file_that_is_not_a_recipe_is_refused(
    load: Load, content: str | bytes, where: str, code: str, named: str
) -> None:
    with raises(RecipeError, code, named) as caught:
        load(content)
    assert f"recipe.yaml{where}" in str(caught.value.where)


def test_alias_bomb_is_refused_quickly(load: Load) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
    )
    began = time.process_time()
    with raises(RecipeError, "recipe-too-large", "aliases"):
        load(bomb + RECIPE)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("override", ["trackers=&a [*a]", "launch=&a {on: *a}", "seed=" + "[" * 500 + "]" * 500])
def test_overrides_have_the_same_limits(load: Load, override: str) -> None:
    with raises(RecipeError, "recipe-too-large"):
        load(RECIPE, override)


def test_endless_file_is_not_read_to_its_end() -> None:
    if not os.path.exists("/dev/zero"):
        pytest.skip("needs /dev/zero")
    with raises(RecipeError, "recipe-too-large"):
        load_recipe("/dev/zero")


def test_folder_and_missing_file_have_hints(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    with raises(RecipeError, "wrong-path", where=str(tmp_path)):
        load_recipe(tmp_path)
    with raises(RecipeError, "not-found", where="recpie.yaml") as caught:
        load_recipe(tmp_path / "recpie.yaml")
    assert str(tmp_path / "recipe.yaml") in str(caught.value.hint)
    with raises(RecipeError, "not-found", "tunesmith init"):
        load_recipe(tmp_path / "nowhere" / "x.yaml")
