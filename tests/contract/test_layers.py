"""The layers of the package: allowed imports, no circles, light imports, and no code that runs data."""

import ast
from collections.abc import Iterator

import pytest
from tests.contract.sources import PACKAGE, Source, sources

LAYERS = (
    ("core",),
    ("scoring", "demo", "general", "registry", "track", "architecture"),
    ("recipe", "fetch", "report"),
    ("estimate", "tasks", "slurm"),
    ("data",),
    ("model",),
    ("distributed", "gguf"),
    ("kernels",),
    ("inference", "objectives"),
    ("train", "evaluate", "engines"),
    ("proof",),
    ("promote", "replicate", "export"),
    ("pipeline",),
    ("draft", "plan", "serve"),
    ("sweep", "doctor"),
    ("cli", "__main__", "__init__"),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
LOOSE = {"__init__.py", "__main__.py", "doctor.py"}

# Each takes half a second to three seconds to import. Modules up to `data` import them inside functions only.
SLOW = {"torch", "transformers", "datasets", "peft", "accelerate", "pandas", "pyarrow"}
LIGHT = LAYER["data"]
# Libraries that can run code while they read a file.
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}


def wrong_imports(source: Source) -> Iterator[str]:
    """Yield the imports of a file that the table does not allow."""
    own = LAYER[source.folder]
    for imported in source.imports:
        if imported.module.startswith("."):
            yield f"{source.name}:{imported.line} imports relatively"
        if not imported.module.startswith("tunesmith."):
            continue
        folder = imported.module.split(".")[1]
        layer = LAYER.get(folder, LAYER["__init__"])  # a name such as `run_recipe` is from the root
        same_folder = folder == source.folder or own == LAYER["cli"]
        if layer > own or (layer == own and not same_folder):
            yield f"{source.name}:{imported.line} imports {imported.module} (layer {layer} from layer {own})"


def slow_imports(source: Source) -> Iterator[str]:
    """Yield the slow libraries that a light module imports at its top."""
    if LAYER[source.folder] <= LIGHT or LAYER[source.folder] >= LAYER["pipeline"]:
        for imported in source.imports:
            if imported.module.split(".")[0] in SLOW and not imported.lazy:
                yield f"{source.name}:{imported.line} imports {imported.module} at its top"


def dangers(source: Source) -> Iterator[str]:
    """Yield calls and imports that could run code from data files or a shell."""
    for imported in source.imports:
        if imported.module.split(".")[0] in UNSAFE:
            yield f"{source.name}:{imported.line} imports {imported.module}"
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        settings = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        call = f"{source.name}:{node.lineno} calls {called}"
        if called in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
            yield call
        if called in ("torch.load", "torch.save", "yaml.load", "yaml.unsafe_load"):
            yield call
        if settings.get("shell", "False") != "False":
            yield f"{call} with a shell"
        if settings.get("trust_remote_code", "False") != "False":
            yield f"{call} with remote code"
        if settings.get("allow_pickle", "False") != "False" or settings.get("typ") == "'unsafe'":
            yield f"{call} unsafely"


def test_every_file_has_a_layer() -> None:
    assert {source.folder for source in sources()} - LAYER.keys() == set()


def test_every_name_in_the_layers_exists() -> None:
    existing = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    assert LAYER.keys() - existing == set()


def test_only_three_modules_are_at_the_root() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == LOOSE


def test_every_folder_has_several_modules() -> None:
    modules = {path: [file for file in path.glob("*.py") if file.name != "__init__.py"] for path in PACKAGE.iterdir()}
    assert [path.name for path, files in modules.items() if len(files) == 1] == []


@pytest.mark.parametrize("rule", [wrong_imports, slow_imports, dangers])
def test_no_file_breaks_a_rule(rule: object) -> None:
    assert callable(rule)
    assert [breach for source in sources() for breach in rule(source)] == []


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
def test_the_layer_rule_finds_counter_examples(name: str, text: str, broken: bool) -> None:
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
def test_the_light_import_rule_finds_counter_examples(name: str, text: str, broken: bool) -> None:
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
def test_the_danger_rule_finds_counter_examples(text: str, broken: bool) -> None:
    assert bool(list(dangers(Source("core/x.py", text)))) == broken


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others, as sorted lists."""

    def reachable_from(start: str) -> set[str]:
        reached: set[str] = set()
        pending = [start]
        while pending:
            new = graph.get(pending.pop(), set()) - reached
            reached |= new
            pending += new
        return reached

    reachable = {module: reachable_from(module) for module in graph}
    groups = {
        tuple(sorted(other for other in graph if other in reachable[module] and module in reachable[other]))
        for module in graph
    }
    return [list(group) for group in groups if group]


def test_no_import_circles() -> None:
    names = {f"tunesmith.{source.name.removesuffix('.py').replace('/', '.')}": source for source in sources()}
    graph = {name: {imported.module for imported in source.imports} & names.keys() for name, source in names.items()}
    assert circles(graph) == []


def test_the_circle_rule_finds_counter_examples() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
