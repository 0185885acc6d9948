"""`promote.mirror: mlflow`: versions and aliases in a real MLflow registry, by promotion, moves and rollback."""

from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.support.verdicts import verdict

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import new_folder
from tunesmith.promote.commands import move_alias, roll_back
from tunesmith.promote.mirror import mirror
from tunesmith.registry.store import Registry, Version

VERDICT = verdict().to_json()


def add(folder: Path, text: str, mirrored_to: str | None = "mlflow") -> Version:
    with new_folder(folder / text, stage="train") as made:
        (made / "adapter_config.json").write_text(text)
    facts = {"recipe": {"promote": {"mirror": mirrored_to}}, "base": "org/base", "verdict": VERDICT}
    return Registry.default().add("sql", folder / text, facts=facts)


@pytest.mark.slow
def test_versions_and_aliases_are_mirrored_to_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    registry = Registry.default()
    # The recipe of the first version asks for no mirror.
    first, second = add(tmp_path, "one", mirrored_to=None), add(tmp_path, "two")
    for version in (first, second, second):  # a repeated call changes nothing
        registry.move("sql", "staging", version.number, verdict=VERDICT, reason=None)
        mirror(registry, version, "staging")
    store = f"sqlite:///{registry.root.resolve()}/mlflow/mlflow.db"
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    assert len(client.search_model_versions("name='sql'")) == 2
    staged = client.get_model_version_by_alias("sql", "staging")
    assert (staged.tags["tunesmith.version"], staged.tags["verdict"]) == (str(second.number), "better")
    assert Path(download_artifacts(staged.source), "adapter_config.json").read_text() == "two"

    move_alias("sql@1", "production", force=False, reason=None)
    assert client.get_model_version_by_alias("sql", "production").tags["tunesmith.version"] == "1"
    assert roll_back("sql", "staging", reason="worse")["version"] == 1
    assert client.get_model_version_by_alias("sql", "staging").tags["tunesmith.version"] == "1"
    assert len(client.search_model_versions("name='sql'")) == 2


def test_models_without_mirror_are_not_in_mlflow(tmp_path: Path) -> None:
    registry = Registry.default()
    mirror(registry, add(tmp_path, "one", mirrored_to=None), "staging")
    assert not (registry.root / "mlflow").exists()


def test_failed_mirror_keeps_the_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add(tmp_path, "one")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with raises(TunesmithError, "mirror-failed", "sql@staging", "version 1"):
        move_alias("sql@1", "staging", force=False, reason=None)
    assert Registry.default().alias_target("sql", "staging") == version.number
