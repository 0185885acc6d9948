"""Who may import whom, and what no file may do. The table is the architecture; everything else follows from it."""

import ast
from collections.abc import Iterator

import pytest
from tests.contract.sources import PACKAGE, Source, sources

LAYERS = (
    ("core",),
    ("scoring", "demo", "registry", "track", "architecture"),
    ("recipe", "fetch", "report"),
    ("estimate", "tasks", "slurm"),
    ("data",),
    ("model",),
    ("distributed",),
    ("kernels",),
    ("inference", "objectives"),
    ("train", "evaluate", "promote"),
    ("pipeline",),
    ("plan",),
    ("sweep", "doctor"),
    ("cli", "__main__", "__init__"),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
LOOSE = {"__init__.py", "__main__.py", "doctor.py"}

# Importing one of these takes from half a second to three. Files up to `data` leave it to the functions that need it.
SLOW = {"torch", "transformers", "datasets", "peft", "accelerate", "pandas", "pyarrow"}
LIGHT = LAYER["data"]


def wrong_imports(source: Source) -> Iterator[str]:
    """Yield the imports of a file that the table does not allow."""
    own = LAYER[source.folder]
    for one in source.imports:
        if one.module.startswith("."):
            yield f"{source.name}:{one.line} imports relatively"
        if not one.module.startswith("tunesmith."):
            continue
        folder = one.module.split(".")[1]
        layer = LAYER.get(folder, LAYER["__init__"])  # a name such as `run_recipe` comes from the top
        same_folder = folder == source.folder or own == LAYER["cli"]
        if layer > own or (layer == own and not same_folder):
            yield f"{source.name}:{one.line} imports {one.module} (layer {layer} from layer {own})"


def slow_imports(source: Source) -> Iterator[str]:
    """Yield the slow libraries that a light file imports as soon as it is imported."""
    if LAYER[source.folder] <= LIGHT or LAYER[source.folder] >= LAYER["pipeline"]:
        for one in source.imports:
            if one.module.split(".")[0] in SLOW and not one.lazy:
                yield f"{source.name}:{one.line} imports {one.module} at once"


def dangers(source: Source) -> Iterator[str]:
    """Yield what could run code that somebody else wrote, or change a shell's command."""
    for one in source.imports:
        if one.module.split(".")[0] in (
            "pickle",
            "cPickle",
            "dill",
            "cloudpickle",
            "joblib",
            "shelve",
            "marshal",
            "yaml",
        ):
            yield f"{source.name}:{one.line} imports {one.module}"
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        settings = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        told = f"{source.name}:{node.lineno} calls {called}"
        if called in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
            yield told
        if called in ("torch.load", "torch.save", "yaml.load", "yaml.unsafe_load"):
            yield told
        if settings.get("shell", "False") != "False":
            yield f"{told} with a shell"
        if settings.get("trust_remote_code", "False") != "False":
            yield f"{told} with remote code"
        if settings.get("allow_pickle", "False") != "False" or settings.get("typ") == "'unsafe'":
            yield f"{told} unsafely"


def test_every_file_has_a_layer() -> None:
    assert {source.folder for source in sources()} - LAYER.keys() == set()


def test_the_table_names_nothing_that_is_gone() -> None:
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    assert LAYER.keys() - there == set()


def test_modules_are_in_folders() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == LOOSE


def test_no_folder_is_for_one_module() -> None:
    modules = {path: [one for one in path.glob("*.py") if one.name != "__init__.py"] for path in PACKAGE.iterdir()}
    assert [path.name for path, held in modules.items() if len(held) == 1] == []


@pytest.mark.parametrize("rule", [wrong_imports, slow_imports, dangers])
def test_no_file_breaks_a_rule(rule: object) -> None:
    assert callable(rule)
    assert [told for source in sources() for told in rule(source)] == []


@pytest.mark.parametrize(
    ("name", "text", "broken"),
    [
        ("core/x.py", "from tunesmith.recipe.load import load_recipe", True),
        ("core/x.py", "from tunesmith.core.errors import DataError", False),
        ("scoring/x.py", "import tunesmith.registry.store", True),
        ("train/x.py", "def f():\n    from tunesmith.evaluate.compare import compare_models", True),
        ("recipe/x.py", "from tunesmith import demo", False),
        ("recipe/x.py", "from tunesmith import run_recipe", True),
        ("recipe/x.py", "from ..core import errors", True),
        ("doctor.py", "from tunesmith.pipeline.environment import environment", False),
        ("doctor.py", "from tunesmith.cli import app", True),
        ("cli/x.py", "from tunesmith.doctor import examine_machine", False),
    ],
)
def test_the_rule_of_layers_sees(name: str, text: str, broken: bool) -> None:
    assert bool(list(wrong_imports(Source(name, text)))) == broken


@pytest.mark.parametrize(
    ("name", "text", "broken"),
    [
        ("tasks/x.py", "import torch", True),
        ("tasks/x.py", "if True:\n    from transformers.utils import logging", True),
        ("tasks/x.py", "def f():\n    import torch", False),
        ("tasks/x.py", "if TYPE_CHECKING:\n    import torch", False),
        ("model/x.py", "import torch", False),
        ("cli/x.py", "import datasets", True),
    ],
)
def test_the_rule_of_light_imports_sees(name: str, text: str, broken: bool) -> None:
    assert bool(list(slow_imports(Source(name, text)))) == broken


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("import pickle", True),
        ("def f():\n    from pickle import loads", True),
        ("torch.load(path)", True),
        ("eval('1')", True),
        ("model.eval()", False),
        ("exec(code)", True),
        ("subprocess.run(command, shell=True)", True),
        ("subprocess.run(command, shell=wanted)", True),
        ("subprocess.run(command, shell=False)", False),
        ("load(trust_remote_code=True)", True),
        ("load(trust_remote_code=False)", False),
        ("YAML(typ='unsafe')", True),
        ("YAML(typ='rt').load(text)", False),
        ("np.load(path, allow_pickle=True)", True),
    ],
)
def test_the_rule_of_dangers_sees(text: str, broken: bool) -> None:
    assert bool(list(dangers(Source("core/x.py", text)))) == broken


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the modules that import each other, directly or through others, as sorted lists."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        left = [start]
        while left:
            new = graph.get(left.pop(), set()) - found
            found |= new
            left += new
        return found

    behind = {module: reached(module) for module in graph}
    rings = {tuple(sorted(one for one in graph if one in behind[module] and module in behind[one])) for module in graph}
    return [list(ring) for ring in rings if ring]


def test_no_modules_import_each_other() -> None:
    names = {f"tunesmith.{source.name.removesuffix('.py').replace('/', '.')}": source for source in sources()}
    graph = {name: {one.module for one in source.imports} & names.keys() for name, source in names.items()}
    assert circles(graph) == []


def test_the_rule_of_circles_sees() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
