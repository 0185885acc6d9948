"""`promote.mirror: mlflow`: version and alias in a real MLflow registry, through promotion, moves and rollback."""

from pathlib import Path

import pytest
from tests.support.verdicts import verdict

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import new_folder
from tunesmith.promote.commands import move_alias, roll_back
from tunesmith.promote.mirror import mirror
from tunesmith.registry.store import Registry, Version

VERDICT = verdict().to_json()


def add(folder: Path, text: str, asked: str | None = "mlflow") -> Version:
    with new_folder(folder / text, stage="train") as made:
        (made / "adapter_config.json").write_text(text)
    facts = {"recipe": {"promote": {"mirror": asked}}, "base": "org/base", "verdict": VERDICT}
    return Registry.default().add("sql", folder / text, facts=facts)


@pytest.mark.slow
def test_version_and_alias_are_in_mlflow_and_load_from_there(tmp_path: Path) -> None:
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    registry = Registry.default()
    # The first version's recipe did not ask for it yet.
    first, second = add(tmp_path, "one", asked=None), add(tmp_path, "two")
    for version in (first, second, second):  # the same again changes nothing
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


def test_nothing_is_mirrored_that_was_not_asked_for(tmp_path: Path) -> None:
    registry = Registry.default()
    mirror(registry, add(tmp_path, "one", asked=None), "staging")
    assert not (registry.root / "mlflow").exists()


def test_a_mirror_that_fails_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add(tmp_path, "one")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TunesmithError) as refused:
        move_alias("sql@1", "staging", force=False, reason=None)
    assert "sql@staging is version 1, but MLflow was not told" in refused.value.message
    assert Registry.default().alias_target("sql", "staging") == version.number
