"""Publishing on the hub, against a hub on the loopback interface."""

import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.support.fake_hub import FakeHub, fake_hub

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.export.hub import check_repository, publish

CARD = b"---\ntags:\n- tunesmith\n---\n"


both_ways = pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
"""Large files by LFS, and by hf_xet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    with fake_hub() as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", getattr(request, "param", "lfs") == "lfs")
        monkeypatch.setenv("HF_TOKEN", running.token)
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    made.mkdir()
    (made / "README.md").write_bytes(CARD)
    (made / "model.safetensors").write_bytes(b"weights" * 1000)
    (made / "config.json").write_text("{}")
    return made


def published_files(hub: FakeHub) -> set[str]:
    return set(hub.repositories["org/shop"].files) - {".gitattributes"}


@both_ways
def test_publish_makes_one_commit_in_a_private_repository(hub: FakeHub, folder: Path) -> None:
    published = publish(folder, "org/shop", message="version 1", endpoint=hub.url)
    repository = hub.repositories["org/shop"]
    assert repository.private
    assert len(repository.commits) == 2
    assert published.url.endswith(repository.commits[-1])
    assert published_files(hub) == set(published.files) == {path.name for path in folder.iterdir()}
    assert repository.files["README.md"] == CARD
    if hub.blobs:  # with LFS; hf_xet sends blocks
        assert list(hub.blobs.values()) == [(folder / "model.safetensors").read_bytes()]


def test_publish_again_adds_nothing_and_a_new_version_replaces_files(hub: FakeHub, folder: Path) -> None:
    publish(folder, "org/shop", message="version 1", endpoint=hub.url)
    (folder / "config.json").unlink()
    (folder / "Modelfile").write_text("FROM x")
    publish(folder, "org/shop", message="version 2", endpoint=hub.url)
    assert published_files(hub) == {"README.md", "model.safetensors", "Modelfile"}
    assert len(hub.repositories["org/shop"].commits) == 3


def test_files_of_others_are_kept(hub: FakeHub, folder: Path) -> None:
    publish(folder, "org/shop", message="version 1", endpoint=hub.url)
    hub.repositories["org/shop"].files = {"README.md": b"# Mine", "thesis.txt": b"x"}
    with raises(RecipeError, "exists", "org/shop"):
        check_repository("org/shop", endpoint=hub.url)
    with raises(RecipeError, "exists", "org/shop"):
        publish(folder, "org/shop", message="version 2", endpoint=hub.url)
    assert published_files(hub) == {"README.md", "thesis.txt"}


@pytest.mark.parametrize("name", ["shop", "org/shop/x", "org/sh op", "org/--shop", "../shop", ""])
def test_wrong_name_is_refused_before_any_request(name: str, hub: FakeHub) -> None:
    with raises(RecipeError, "bad-name"):
        check_repository(name, endpoint=hub.url)
    assert hub.requests == []


def test_token_that_is_missing_or_wrong(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("", "hf_other_canary"):
        monkeypatch.setenv("HF_TOKEN", token)
        with raises(RecipeError, "hub-token", "hf auth login") as caught:
            publish(folder, "org/shop", message="version 1", endpoint=hub.url)
        shown = "".join(traceback.format_exception(caught.value))
        assert "hf_other_canary" not in shown
    assert hub.repositories == {}


def test_owner_of_others_is_refused(hub: FakeHub, folder: Path) -> None:
    with raises(RecipeError, "hub-forbidden", "stranger"):
        publish(folder, "stranger/shop", message="version 1", endpoint=hub.url)
    assert hub.repositories == {}


@both_ways
@pytest.mark.parametrize("step", ["/api/models/org/shop/preupload", "/api/models/org/shop/commit"])
def test_failure_publishes_nothing_and_the_same_command_resumes(step: str, hub: FakeHub, folder: Path) -> None:
    hub.fail = {step: 400}
    with raises(TunesmithError, "hub-unreachable", 400):
        publish(folder, "org/shop", message="version 1", endpoint=hub.url)
    assert published_files(hub) == set()
    hub.fail, uploads = {}, len(hub.blobs)
    publish(folder, "org/shop", message="version 1", endpoint=hub.url)
    assert published_files(hub) == {path.name for path in folder.iterdir()}
    if step.endswith("commit") and hub.blobs:
        assert len(hub.blobs) == uploads == 1
        assert sum(method == "PUT" for method, _ in hub.requests) == 1


def test_change_by_somebody_else_meanwhile(hub: FakeHub, folder: Path) -> None:
    hub.fail = {"/api/models/org/shop/commit": 412}
    with raises(RecipeError, "hub-conflict"):
        publish(folder, "org/shop", message="version 1", endpoint=hub.url)


def test_card_that_the_hub_refuses(hub: FakeHub, folder: Path) -> None:
    hub.card_errors = [{"message": '"license" must be one of [...]'}]
    with raises(TunesmithError, "hub-refused", "license"):
        publish(folder, "org/shop", message="version 1", endpoint=hub.url)
    assert published_files(hub) == set()


def test_hub_that_cannot_be_reached(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with raises(TunesmithError, "hub-unreachable", "HF_ENDPOINT"):
        check_repository("org/shop", endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with raises(RecipeError, "hub-unreachable", "HF_HUB_OFFLINE"):
        check_repository("org/shop", endpoint=hub.url)
