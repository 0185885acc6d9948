"""The records of a model: of its run, or of its version in the registry."""

from pathlib import Path
from typing import Any

import pytest
from tests.support import verdicts

from tunesmith.core.files import write_json
from tunesmith.export.provenance import Provenance, provenance_of
from tunesmith.fetch.reference import resolve
from tunesmith.registry.store import Registry


@pytest.mark.parametrize(
    ("source", "names", "datasets"),
    [
        ({"file": "/srv/ann/rows.csv"}, ("rows.csv",), ()),
        ({"file": ["a/x.jsonl", "https://ann:key@host/data/y.csv?key=1"]}, ("x.jsonl, y.csv",), ()),
        ({"hub": "org/rows"}, ("org/rows",), ("org/rows",)),
        ({"hub": "/srv/ann/dataset"}, ("dataset",), ()),
        ({"generated": "shop-sql"}, ("shop-sql",), ()),
        ([{"file": "a.csv", "name": "mine"}, {"hub": "o/b"}, {"hub": "o/b"}], ("mine", "o/b", "o/b"), ("o/b",)),
        (None, (), ()),
    ],
)  # fmt: skip
def test_sources_have_names_without_folders_hosts_and_keys(
    source: Any, names: tuple[str, ...], datasets: tuple[str, ...]
) -> None:
    found = Provenance("model", recipe={"data": {"source": source}})
    assert (found.source_names, found.hub_datasets) == (names, datasets)


def test_version_of_the_registry_has_its_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_REGISTRY", str(tmp_path / "registry"))
    model = tmp_path / "model"
    model.mkdir()
    write_json(model / "config.json", {"model_type": "llama"})
    write_json(model / "tunesmith.json", {"name": "run", "step": 80})
    facts = {
        "recipe": {"name": "run"}, "verdict": verdicts.verdict().to_json(), "data_digest": "d" * 64,
        "rows": {"train": 10}, "trained_with": {"torch": "2.13.0"},
    }  # fmt: skip
    Registry.default().add("shop", model, facts=facts)
    found = provenance_of(resolve("shop@1", weights=False))
    assert (found.name, found.version, found.steps) == ("shop", "shop@1", 80)
    assert found.verdict is not None
    assert found.verdict.primary.gain == 0.05
    assert (found.data_digest, found.rows, found.versions) == ("d" * 64, {"train": 10}, {"torch": "2.13.0"})


def test_other_models_have_only_a_name(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write_json(model / "config.json", {"model_type": "llama"})
    assert provenance_of(resolve(str(model), weights=False)) == Provenance("model")
