"""What real users ran into with runs: each test trains a tiny model for two steps, or uses a run that did."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.cases import PROMOTED, Case, Command, table, write
from tests.support.tiny import tree

from tunesmith import cli
from tunesmith.fetch.reference import resolve

ASK = ("--max-new-tokens", 3)


def test_w2_rows_that_the_base_was_trained_on_give_a_warning(moved: Path, tunesmith: Command) -> None:
    again = ("plan", "recipe.yaml", "model.base=run:runs/a", "data.prompt='Now do: {q}'")
    assert "was trained on" not in tunesmith(*again).output
    other = tunesmith(*again, "seed=5")
    assert other.code == 0
    assert "was trained on" in other.output
    assert tunesmith(*again, "seed=5", "data.leakage=error").code == 3


def test_w2_two_prompts_are_judged_on_the_same_rows(moved: Path, tunesmith: Command) -> None:
    assert tunesmith("run", "recipe.yaml", "--out", "runs/b", "data.prompt='Now do: {q}'", "promote=null").code == 0
    files = [f"runs/{name}/evaluate/tuned/scores.jsonl" for name in ("a", "b")]
    done = tunesmith("verdict", *files, "--metric", "exact_match", "--json")
    assert done.code == 0, done.output
    ids = [[json.loads(line)["id"] for line in Path(file).read_text().splitlines()] for file in files]
    assert sorted(ids[0]) == sorted(ids[1])
    assert json.loads(done.out)["rows"] == len(ids[0]) > 5


def test_w7_settings_of_evaluation_do_not_train_again(moved: Path, tunesmith: Command) -> None:
    trained = tree(Path("runs/a/train"))
    text = Path("recipe.yaml").read_text()
    Path("recipe.yaml").write_text(text.replace("rows: 10", "rows: 8"))
    done = tunesmith("run", "recipe.yaml", "--out", "runs/a", "--json")
    assert done.code == 0, done.output
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
        assert done.code == 0, done.output


def test_o30_chat_answers_a_second_question(
    models: Callable[[str], Path], tunesmith: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("cat\ndog\n\n"))
    done = tunesmith("chat", models("thinking"), *ASK)
    assert done.code == 0, done.output


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
        ("a run to compare that does not exist", ("compare", "runs/a", "runs/b"), 2, ("runs/b",)),
    ],
)  # fmt: skip
def test_commands(
    name: str, arguments: tuple[Any, ...], code: int, told: tuple[str, ...], moved: Path, tunesmith: Command
) -> None:
    done = tunesmith(*arguments)
    assert done.code == code, (name, done.output)
    assert [part for part in told if part not in done.output] == []


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


def test_r27_without_a_home_the_error_names_the_variable_to_set(
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
    assert done.code in (0, 2), done.output
    assert done.code == 0 or "TUNESMITH_CACHE" in done.output
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


def test_o34_a_renamed_project_continues_its_run(models: Callable[[str], Path], tunesmith: Command) -> None:
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
    for command in ("run", "train", "evaluate", "prepare", "plan"):
        refused = tunesmith(command, "runs/a", "train.learning_rate=5e-3")
        assert refused.code == 2, (command, refused.output)
        assert "train.learning_rate" in refused.output
        assert tree(Path("runs/a")) == before, command
    assert tunesmith("run", "runs/a").code == 0


def times(folder: Path) -> dict[str, int]:
    """Return when each file below a folder was written, in nanoseconds."""
    return {name: (folder / name).stat().st_mtime_ns for name in tree(folder)}


def test_o01_training_on_ones_own_alias_gives_a_chain(moved: Path, tunesmith: Command) -> None:
    text = Path("recipe.yaml").read_text().replace("name: c\n", "name: again\n")
    Path("again.yaml").write_text(
        "\n".join("  base: loop@staging" if "base:" in one else one for one in text.splitlines())
    )
    assert tunesmith("run", "again.yaml", "--out", "runs/b").code == 0
    assert json.loads(tunesmith("models", "loop", "--json").out)["moves"][-1]["to"] == 2
    for name in ("loop@staging", "loop@2", "loop@1", "run:runs/b"):
        assert tunesmith("generate", name, "--prompt", "hi", *ASK).code == 0, name
    found = resolve("loop@staging")
    assert found.card["base"] == "loop@1"
    assert found.base is not None
    assert found.base.digest() == resolve("loop@1").digest()
    before = times(Path("runs/b"))
    assert tunesmith("run", "again.yaml", "--out", "runs/b").code == 0  # the alias means the result itself now
    assert {name for name, one in times(Path("runs/b")).items() if one != before[name]} <= {"logs/lock"}
    assert tunesmith("plan", "again.yaml").code == 0


def test_o16_an_unrelated_file_in_the_base_folder_changes_nothing(
    models: Callable[[str], Path], tunesmith: Command
) -> None:
    shutil.copytree(models("tiny"), "base")
    write(Case("", 0, changes={**PROMOTED, "model.base": "base"}), models)
    assert tunesmith("train", "recipe.yaml", "--out", "runs/a").code == 0
    for name in ("README.md", ".DS_Store"):
        Path("base", name).write_text("hello")
    trained = tree(Path("runs/a/train"))
    assert tunesmith("run", "recipe.yaml", "--out", "runs/a").code == 0
    assert tree(Path("runs/a/train")) == trained
    assert tunesmith("generate", "loop@staging", "--prompt", "hi", *ASK).code == 0


def test_w4_generate_asks_as_the_recipe_does(moved: Path, tunesmith: Command) -> None:
    Path("ask.jsonl").write_text('{"q": "hi"}\n')
    found = []
    for asking in (("--prompt", "hi"), ("--row", "q=hi"), ("--file", "ask.jsonl")):
        done = tunesmith("generate", "runs/a", *asking, *ASK, "--json")
        assert done.code == 0, done.output
        found.append(json.loads(done.out.strip().splitlines()[0]) if asking[0] == "--file" else json.loads(done.out)[0])
    assert len({one.get("answer", one.get("prediction")) for one in found}) == 1
    assert all(part in found[-1]["prompt"] for part in ("Be brief.", "Do: hi"))


def test_w7_settings_of_evaluation_do_not_start_another_run(models: Callable[[str], Path], tunesmith: Command) -> None:
    found = set()
    for changes in ({}, {"evaluate.rows": 9}, PROMOTED, {"evaluate.metrics": ["exact_match", "bleu"]}):
        recipe = write(Case("", 0, changes=changes), models)
        found.add(json.loads(tunesmith("plan", recipe, "--json").out)["run"])
    assert len(found) == 1
