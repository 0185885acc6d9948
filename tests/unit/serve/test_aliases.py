"""A promotion swaps the served version: every answer is whole and by one version, and a bad version changes nothing."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.support.served import HELLO, Server, listening, register, server, wait_until
from tests.support.tiny import save_model
from tests.support.tuned import CHAT, tuned_model

from tunesmith.inference.request import Limits
from tunesmith.registry.store import Registry
from tunesmith.serve import pool
from tunesmith.serve.work import Done, Event, Work

LONG = {**HELLO, "max_tokens": 60, "logit_bias": {"2": -100}}


@pytest.fixture
def versions(tuned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Folders of two models that answer differently."""
    monkeypatch.setattr(pool, "_SUBMIT_SECONDS", 0.5)
    other = tuned_model(save_model(tmp_path / "other", "llama", seed=1), tmp_path / "second", CHAT, precision="fp32")
    return tuned, other


def answer(running: Server, model: str = "tiny@staging", **changes: Any) -> tuple[str, str]:
    """Return the version that answers and its answer."""
    response = running.post("/v1/chat/completions", **{**HELLO, "model": model, **changes})
    assert response.status_code == 200, response.text
    return response.headers["x-tunesmith-model"], response.json()["choices"][0]["message"]["content"]


def test_a_registered_model_has_three_names(versions: tuple[str, str]) -> None:
    register(versions[0], verdict={"damaged": True})
    with server("tiny@staging") as running:
        assert {answer(running, name) for name in ("tiny@staging", "tiny@1", "tiny")} == {answer(running)}
        entries = running.client.get("/v1/models").json()["data"]
        assert [(entry["id"], entry["version"], entry["verdict"]) for entry in entries] == [
            ("tiny@staging", "tiny@1", None), ("tiny@1", "tiny@1", None), ("tiny", "tiny@1", None),
        ]  # fmt: skip


def test_two_versions_are_served_and_the_short_name_is_left_out(versions: tuple[str, str]) -> None:
    for folder in versions:
        register(folder)
    with server("tiny@1", "tiny@2") as running:
        first, second = answer(running, "tiny@1"), answer(running, "tiny@2")
        assert (first[0], second[0]) == ("tiny@1", "tiny@2")
        assert first[1] != second[1]
        assert running.post("/v1/chat/completions", model="tiny", **HELLO).status_code == 404


def test_requests_during_a_promotion_are_answered_whole_by_one_version(versions: tuple[str, str]) -> None:
    register(versions[0])
    with server("tiny@staging") as running, listening(running):
        expected = {"tiny@1": answer(running, **LONG)[1]}
        answers: list[tuple[str, str]] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answers.append(answer(running, **LONG))

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        register(versions[1])
        wait_for(running, "tiny@2", answers)  # the server notices by itself
        Registry.default().rollback("tiny", "staging")
        wait_for(running, "tiny@1", answers)
        stop.set()
        for thread in threads:
            thread.join()
        expected["tiny@2"] = answer_of(versions[1])
        assert {version for version, _ in answers} == {"tiny@1", "tiny@2"}
        assert all(text == expected[version] for version, text in answers)
        metrics = running.client.get("/metrics").text
        assert "tunesmith_version_swaps_total 2.0" in metrics


def wait_for(running: Server, version: str, answers: list[tuple[str, str]]) -> None:
    """Wait until a version is served and has answered."""
    wait_until(lambda: running.service.catalog.find("tiny@staging").name == version)
    seen = len(answers)
    wait_until(lambda: version in {name for name, _ in answers[seen:]})


def answer_of(folder: str) -> str:
    with server(f"other={folder}") as running:
        return answer(running, "other", **LONG)[1]


def test_a_bad_version_leaves_the_old_one_in_place(versions: tuple[str, str]) -> None:
    register(versions[0])
    with server("tiny@staging") as running:
        before = answer(running)
        register(versions[1])
        weights = Registry.default().folder(Registry.default().resolve("tiny@2")) / "model.safetensors"
        content = weights.read_bytes()
        weights.unlink()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        running.aliases.update()
        assert answer(running) == before
        ready = running.client.get("/readyz")
        assert (ready.status_code, ready.json()["failures"]) == (200, {"tiny@staging": "tiny@2: damaged-file"})
        assert "tunesmith_version_swap_failures_total 1.0" in running.client.get("/metrics").text
        running.aliases.update()  # not tried again at once
        assert "tunesmith_version_swap_failures_total 1.0" in running.client.get("/metrics").text
        Registry.default().rollback("tiny", "staging")
        running.aliases.update()
        assert running.client.get("/readyz").json()["failures"] == {}
        third = Path(shutil.copytree(versions[1], Path(versions[1]).parent / "third"))
        register(third, note="repaired")
        running.aliases.update()
        assert answer(running)[0] == "tiny@3"


def test_a_rollback_does_not_wait_for_a_request_to_the_old_version(
    versions: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_SUBMIT_SECONDS", 0.0)
    register(versions[0])
    with server("tiny@staging") as running:
        worker, step, paused = running.worker("tiny@staging"), threading.Event(), threading.Event()
        ended: list[Event] = []

        def pause(event: Event) -> None:
            ended.append(event)
            paused.set()
            assert step.wait(60)

        model = running.service.catalog.find("tiny@staging")
        ids = model.prompts.continued_ids("a")
        worker.submit(Work("tiny@1", ids, Limits(3)), pause)
        assert paused.wait(60)
        register(versions[1])
        running.aliases.update()
        assert answer(running)[0] == "tiny@2"
        Registry.default().rollback("tiny", "staging")
        running.aliases.update()
        assert answer(running)[0] == "tiny@1"
        step.set()
        wait_until(lambda: not worker.is_alive)  # it ends with its last answer
        assert isinstance(ended[-1], Done)


def test_an_error_does_not_end_the_following_of_aliases(
    versions: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(versions[0])
    with server("tiny@staging") as running:
        update, failed = running.aliases.update, threading.Event()

        def fail_once() -> None:
            if not failed.is_set():
                failed.set()
                raise OSError("the disk of the registry is away")
            update()

        monkeypatch.setattr(running.aliases, "update", fail_once)
        with listening(running):
            assert failed.wait(60)
            register(versions[1])
            wait_until(lambda: running.service.catalog.find("tiny@staging").name == "tiny@2")
