"""The stages of a run are listed once, in core/stages.py; adding one touches that table and no other module."""

import ast
import importlib
from collections.abc import Iterator

import pytest
from tests.contract.sources import PACKAGE, Source, sources

from tunesmith.cli import app
from tunesmith.core.stages import STAGES, stage_named
from tunesmith.recipe.schema import Recipe

NAMES = {stage.name for stage in STAGES}
CONSTANTS = {name.upper() for name in NAMES}


def stage_lists(source: Source) -> Iterator[str]:
    """Yield the lists of stages in a file: two or more stages, and nothing else, in a collection or as keys.

    `Literal["train", "evaluate"]` is a choice between two of them; a `Literal` of all is a list.
    """
    choices = {
        id(node.slice) for node in ast.walk(source.tree) if isinstance(node, ast.Subscript) and _is_literal(node.value)
    }
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            elements: list[ast.expr | None] = list(node.elts)
        elif isinstance(node, ast.Dict):
            elements = list(node.keys)
        else:
            continue
        stages = {name for element in elements if (name := _stage_name(element))}
        if len(stages) == len(elements) >= (len(NAMES) if id(node) in choices else 2):
            yield f"{source.name}:{node.lineno} lists {', '.join(sorted(stages))}"


def _is_literal(node: ast.expr) -> bool:
    return ast.unparse(node).rpartition(".")[2] == "Literal"


def _stage_name(node: ast.expr | None) -> str | None:
    """Return the stage that an expression names: `"train"`, `TRAIN` or `TRAIN.name`."""
    if isinstance(node, ast.Attribute) and node.attr == "name":
        node = node.value
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return node.id.lower()
    return node.value if isinstance(node, ast.Constant) and node.value in NAMES else None


def test_stages_are_listed_once() -> None:
    others = (source for source in sources() if source.name != "core/stages.py")
    assert [where for source in others for where in stage_lists(source)] == []


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ('STAGES = ("prepare", "train", "evaluate", "promote")', True),
        ('if name in ("evaluate", "promote"):\n    pass', True),
        ('DOING = {"prepare": "preparing", "train": "training"}', True),
        ("for stage in (PREPARE, EVALUATE):\n    pass", True),
        ("PROGRESS = {TRAIN.name: steps, EVALUATE.name: answers}", True),
        (f"stage: Literal{sorted(NAMES)}", True),
        ('stage: Literal["train", "evaluate"]', False),
        ('SPLITS = ("train", "valid", "test")', False),
        ('run.manifest("train"), run.manifest("evaluate")', False),
        ('inputs = {"prepare": digest, "train": digest, "seed": 1}', False),
    ],
)
def test_the_rule_finds_counter_examples(text: str, is_list: bool) -> None:
    assert bool(list(stage_lists(Source("report/x.py", text)))) == is_list


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_each_row_names_modules_functions_and_commands_that_exist(stage: object) -> None:
    row = stage_named(getattr(stage, "name", ""))
    assert row is stage
    module = PACKAGE.parent / f"{row.package.replace('.', '/')}/{row.name}.py"
    functions = [node.name for node in ast.parse(module.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert row.name in functions
    assert callable(importlib.import_module(f"{row.package}.inputs").inputs)
    assert app[row.command].help.strip()
    assert not row.key or Recipe.model_fields[row.key].default is None
