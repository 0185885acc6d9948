"""A recipe as a YAML document: what its words mean, which escapes are refused, and files that hold no recipe."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.recipe.conftest import RECIPE, Load, Told, changed, line_of

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.load import dump_recipe, load_recipe
from tunesmith.recipe.schema import ChatData

# --- values ---


@pytest.mark.parametrize(
    ("written", "read"),
    [("2e-4", 2e-4), ("2.0E-4", 2e-4), (".5", 0.5), ("1", 1.0), ("1_000", 1000.0), ("0x10", 16.0)],
)
def test_numbers_are_numbers(load: Load, written: str, read: float) -> None:
    assert load(changed("2e-4", written)).train.learning_rate == read


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n"])
def test_words_are_words(load: Load, word: str) -> None:
    assert load(changed("name: viggo", f"name: {word}")).name == word


def test_no_leading_zero_makes_a_number_octal(load: Load) -> None:
    assert load(RECIPE + "seed: 017\n").seed == 17
    assert load(RECIPE + "seed: 0o17\n").seed == 15


@pytest.mark.parametrize("date", ["2024-01-01", "2024-13-45", "2001-12-14t21:59:43.10-05:00", "2024-01-01 10:30:00"])
def test_dates_are_text_to_the_letter(load: Load, date: str) -> None:
    assert load(changed("org/model", date)).model.base == date
    assert load(RECIPE, f"model.base={date}").model.base == date


def test_an_alias_and_a_merge_are_written_out(load: Load) -> None:
    text = changed("valid: 0.1", "valid: &tenth 0.1\n    test: *tenth")
    assert load(text).data.split.test == 0.1
    text = changed("learning_rate: 2e-4", "<<: {epochs: 3}\n  learning_rate: 2e-4")
    assert load(text).train.epochs == 3


def test_a_byte_order_mark_and_dos_line_ends_are_no_text(load: Load) -> None:
    assert load(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode()) == load(RECIPE)


# --- escapes and control characters ---


@pytest.mark.parametrize(
    ("written", "lost"),
    [
        *((f"\\{word}", f"\\{word}") for word in ("boxed", "frac", "vec", "alpha", "epsilon", "right", "LaTeX", "Pr")),
        (r"snake\_case", r"\_case"), (r"\N", r"\N"), (r"\0", r"\0"),
    ],
)  # fmt: skip
def test_escapes_that_eat_text_are_refused_with_their_line(load: Load, written: str, lost: str) -> None:
    for text in (
        changed('"Say {mr}"', f'"Say {{mr}} {written} x"'),
        changed('"Say {mr}"', f'"Say {{mr}}\n    {written} x"'),
    ):
        with pytest.raises(RecipeError) as caught:
            load(text)
        assert caught.value.where == line_of(text, lost).replace(
            "recipe.yaml", str(caught.value.where).rpartition(":")[0]
        )
        assert "single quotes" in str(caught.value.hint)
    recipe = load(changed('"Say {mr}"', f"'Say {{mr}} {written}'"))
    assert isinstance(recipe.data, ChatData)
    assert recipe.data.prompt == f"Say {{mr}} {written}"
    with pytest.raises(RecipeError):
        load(RECIPE, f'data.prompt="{{mr}} {written}"')
    # It would be as wrong in a regular expression.
    with pytest.raises(RecipeError):
        load(RECIPE, f'data.filters=[{{column: mr, matches: "{written}"}}]')


@pytest.mark.parametrize(
    "written", [r"\text", r"\textbf", r"\times", r"\theta", r"\frac", r"\nabla", r"\neq", r"\x07", r"\u2028"]
)
def test_control_characters_in_templates_are_refused(told: Callable[..., Told], load: Load, written: str) -> None:
    if written != r"\frac":
        [(where, key, _)] = told(changed('"Say {mr}"', f'"Say {{mr}} {written} x"'))
        assert (where, key) == (line_of(RECIPE, '"Say {mr}"'), "data.prompt")
    for template in ("system", "response"):
        with pytest.raises(RecipeError):
            load(RECIPE, f'data.{template}="{{mr}} {written}"')


def test_line_breaks_and_tabs_that_are_meant_stay(load: Load) -> None:
    for template in ("Name\tAge\n{mr}", "{mr}\n\nanswer", "a\n\ttan\t{mr}"):
        written = template.replace("\n", r"\n").replace("\t", r"\t")
        recipe = load(changed('"Say {mr}"', f'"{written}"'))
        assert isinstance(recipe.data, ChatData)
        assert recipe.data.prompt == template
        assert load(dump_recipe(recipe)) == recipe


# --- what is not a recipe at all ---


@pytest.mark.parametrize(
    ("content", "where", "message"),
    [
        (RECIPE + "name: again\n", ":21", 'found duplicate key "name"'),
        (changed("rank: 8", "rank: 8\n  rank: 9"), ":13", 'found duplicate key "rank"'),
        (RECIPE + "\tx: 1\n", ":21", "is not YAML"),
        (changed("[rougeL, exact_match]", "[rougeL"), ":", "is not YAML"),
        (RECIPE + "---\nname: b\n", ":21", "another document"),
        (RECIPE + f"seed: {'9' * 5000}\n", "", "is not YAML"),
        (RECIPE.encode() + b"# \xff\n", ":21", "is not UTF-8"),
        (RECIPE.encode("utf-16"), ":1", "is not UTF-8"),
        (RECIPE.encode() + b"# \0\n", "", "special characters are not allowed"),
        ("", "", "must be a mapping"),
        ("- name: x\n", "", "must be a mapping"),
        ("just text\n", "", "must be a mapping"),
        ("%YAML 1.1\n---\n" + RECIPE, ":2", "is not YAML 1.2"),
        (changed("org/model", "!foo org/model"), ":2", "tags such as `!foo`"),
        (changed("org/model", '!!python/object/apply:os.system ["true"]'), ":2", "tags such as"),
        (RECIPE + "x: " + "[" * 500 + "]" * 500 + "\n", ":21", "nested too deeply"),
        (RECIPE + "#" * (1 << 20), "", "more than 1,048,576 bytes"),
    ],
)
def test_what_cannot_be_a_recipe_says_why(load: Load, content: str | bytes, where: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(content)
    assert message in caught.value.message
    assert f"recipe.yaml{where}" in str(caught.value.where)


def test_a_few_lines_of_aliases_do_not_fill_the_memory(load: Load) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
    )
    began = time.process_time()
    with pytest.raises(RecipeError, match="aliases"):
        load(bomb + RECIPE)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("knot", ["track=&a [*a]", "launch=&a {on: *a}", "seed=" + "[" * 500 + "]" * 500])
def test_an_override_is_held_to_the_same_limits(load: Load, knot: str) -> None:
    with pytest.raises(RecipeError):
        load(RECIPE, knot)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    if not os.path.exists("/dev/zero"):
        pytest.skip("needs /dev/zero")
    with pytest.raises(RecipeError, match="more than"):
        load_recipe("/dev/zero")


def test_a_folder_and_a_missing_file_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recpie.yaml")
    assert caught.value.hint == f"did you mean {tmp_path / 'recipe.yaml'}?"
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "nowhere" / "x.yaml")
    assert "tunesmith init" in str(caught.value.hint)
