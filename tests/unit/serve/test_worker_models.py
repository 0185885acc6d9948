"""Models are added to a worker and removed from it while it answers requests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.errors import raises
from tests.support.workers import Folders, ask

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.serve.worker import Worker


def test_models_are_swapped_while_requests_are_answered(own: Any, alone: Any, folders: Folders) -> None:
    worker = own("base", "one")
    old = [ask(worker, "one", [5 + i, 6], 60) for i in range(8)]
    worker.add("new", folders["two"]).result(60)
    removed = worker.remove("one")
    assert worker.models == ("base", "new")
    with raises(RecipeError, "no-such-model", "one"):
        ask(worker, "one", [5])
    new = [ask(worker, "new", [5 + i, 6], 20) for i in range(8)]
    assert [collected.answer() for collected in old] == [alone("one", [5 + i, 6], 60) for i in range(8)]
    assert [collected.answer() for collected in new] == [alone("two", [5 + i, 6], 20) for i in range(8)]
    removed.result(60)
    with raises(RecipeError, "no-such-model"):
        worker.remove("one")
    worker.add("one", folders["one"]).result(60)
    assert ask(worker, "one", [5, 6]).answer() == alone("one", [5, 6])
    with raises(RecipeError, "exists"):
        worker.add("one", folders["two"]).result(60)
    worker.remove("base").result(60)
    assert worker.models == ("new", "one")
    assert worker.model("new").shares_batches


def test_a_removed_model_s_beginnings_are_forgotten(own: Any, folders: Folders, alone: Any) -> None:
    worker = own("one")
    prompt = list(range(20, 60))
    ask(worker, "one", prompt).answer()
    assert worker.stats.prefix_bytes
    worker.remove("one").result(60)
    worker.add("one", folders["two"]).result(60)
    assert ask(worker, "one", prompt).answer() == alone("two", prompt)
    assert worker.stats.prefix_hits == 0


def test_models_of_other_bases_are_refused(own: Any, folders: Folders, folder_of: Callable[[str], Path]) -> None:
    other = ModelFolder("gpt2", folder_of("gpt2"))
    with raises(RecipeError, "different-bases"):
        Worker({"one": folders["one"], "other": other})
    worker = own("base")
    with raises(RecipeError, "not-an-adapter"):
        worker.add("other", other).result(60)
    assert worker.models == ("base",)
