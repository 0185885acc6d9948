"""Each page of docs/formats: its rows become examples by its recipe, and `init --from` writes the same recipe."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.contract.sources import ROOT
from tests.support.tiny import recipe, save_model
from tests.unit.draft.conftest import Drafted

from tunesmith.data.process_rows import process_rows
from tunesmith.fetch.reference import resolve
from tunesmith.recipe.load import load_recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.chatml import CHATML_TEMPLATE
from tunesmith.tasks.model_tokenizer import load_tokenizer

PAGES = sorted((ROOT / "docs" / "formats").glob("*.md"))
# What decides the text of an example; `init` also suggests numbers and leaves out what it cannot know.
DECIDED = ("task", "messages", "tools", "reasoning", "text", "prompt", "response")


def block(page: Path, language: str) -> str:
    """Return the first code block of a language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def rows(page: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in block(page, "json").splitlines()]


def numbered(value: Any, number: int) -> Any:
    """Return a row with the number added to each prose text, so that rows differ."""
    if isinstance(value, dict):
        return {key: numbered(each, number) for key, each in value.items()}
    if isinstance(value, list):
        return [numbered(each, number) for each in value]
    is_prose = isinstance(value, str) and " " in value and not value.startswith("{")
    return f"{value} {number}" if is_prose else value


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose chat template writes tools and calls."""
    return save_model(tmp_path_factory.mktemp("model"), "llama", template=CHATML_TEMPLATE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_rows_of_the_page_become_examples(page: Path, tmp_path: Path, model: Path) -> None:
    data = YAML(typ="safe").load(block(page, "yaml"))["data"]
    loaded = load_recipe(recipe(tmp_path, model, data={**data, "split": {"valid": 0.1, "test": 0.2}}))
    (tmp_path / "rows.jsonl").write_text(block(page, "json"), encoding="utf-8")
    task = task_for(loaded.data, load_tokenizer(resolve(str(model)), loaded.model))
    processed = list(process_rows(loaded, task, folder=tmp_path))
    assert [each.entry.status for each in processed] == ["kept"] * len(rows(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_init_writes_the_recipe_of_the_page(page: Path, drafted: Drafted, model: Path) -> None:
    data = YAML(typ="safe").load(block(page, "yaml"))["data"]
    many = [numbered(row, number) for number in range(20) for row in rows(page)]
    found = drafted(many, model).data.model_dump(mode="json")
    assert {name: data[name] for name in DECIDED if name in data} == {
        name: found[name] for name in DECIDED if found.get(name) is not None and name in data
    }
