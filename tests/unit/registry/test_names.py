"""Valid names of models and aliases, and the references that find versions."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.unit.registry.conftest import FACTS, adapter, add, move

from tunesmith.core.errors import RecipeError
from tunesmith.registry.names import parse_reference
from tunesmith.registry.store import Registry, looks_like_reference

BAD_NAMES = (
    *("", ".", "..", "../x", "..\\x", "a/b", "a\\b", "/etc/passwd", "C:\\x", "~", "~root", "%2e%2e", "%2e%2e%2fx"),
    *("%252e", "a\x00", "\x00", "a b", " a", "a ", "a\n", "\na", "a.", "a..b", "-a", "_a", ".a", "A", "modeL", "é"),
    *("vi\u0261go", "\uff41", "\u202eogg", "a\u200b", "a@b", "@", "$(x)", "a;b", "a'", '"', "x" * 65, "x" * 300),
    "\u0663a",
)


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_bad_names_are_refused_by_every_method(registry: Registry, tmp_path: Path, bad: str) -> None:
    source = adapter(tmp_path / "adapter")
    registry.add("viggo", source, facts=FACTS)
    before = sorted(tmp_path.rglob("*"))
    calls: list[Callable[[], object]] = [
        lambda: registry.add(bad, source, facts=FACTS),
        lambda: registry.move(bad, "staging", 1, verdict=None, reason=None),
        lambda: move(registry, 1, alias=bad),
        lambda: registry.rollback(bad, "staging"),
        lambda: registry.rollback("viggo", bad),
        lambda: registry.resolve(f"{bad}@staging"),
        lambda: registry.resolve(f"viggo@{bad}"),
        lambda: registry.versions(bad),
        lambda: registry.history(bad),
        lambda: registry.history("viggo", bad),
        lambda: registry.alias_target("viggo", bad),
        lambda: registry.delete(bad, 1),
    ]
    for call in calls:
        with raises(RecipeError, "bad-name") as error:
            call()
        assert error.value.hint
        assert str(error.value).isascii(), "look-alikes and control characters are escaped"
    assert sorted(tmp_path.rglob("*")) == before
    assert not looks_like_reference(f"{bad}@staging")
    assert not looks_like_reference(f"viggo@{bad}")


@pytest.mark.parametrize("name", ["a", "0", "a-b_c.d", "x" * 64, "3b", "con", "v1.0"])
def test_good_names(registry: Registry, name: str) -> None:
    assert add(registry, "a", name) == 1
    registry.move(name, "staging", 1, verdict=None, reason=None)
    assert registry.resolve(f"{name}@staging") == registry.resolve(f"{name}@1")


@pytest.mark.parametrize("digits", ["3", "007", "0", "1" * 30])
def test_alias_of_digits_is_refused(registry: Registry, digits: str) -> None:
    add(registry, "a")
    with raises(RecipeError, "bad-name", digits):
        move(registry, 1, alias=digits)


def test_parse_reference() -> None:
    assert parse_reference("viggo@staging") == ("viggo", "staging")
    assert parse_reference("viggo@12") == ("viggo", 12)
    with raises(RecipeError, "bad-reference", "viggo"):
        parse_reference("viggo")
    for text in ("viggo@staging", "viggo@1", "3@3", "a.b@v1.2"):
        assert looks_like_reference(text)
    for text in ("viggo", "viggo@", "@1", "a@b@c", "org/viggo@main", "viggo@0", "viggo@03", "viggo@-1", "viggo@\u0663"):
        assert not looks_like_reference(text)
    assert not looks_like_reference("")


def test_resolve_of_a_missing_version_lists_what_exists(registry: Registry) -> None:
    with raises(RecipeError, "not-in-registry", "viggo"):
        registry.resolve("viggo@1")
    assert not registry.root.exists(), "reading creates nothing"
    move(registry, add(registry, "a"))
    for reference, listed in {
        "vigo@1": "viggo",
        "viggo@2": "1, staging (1)",
        "viggo@production": "staging (1)",
    }.items():
        with raises(RecipeError, "not-in-registry") as error:
            registry.resolve(reference)
        assert listed in (error.value.hint or "")
    with raises(RecipeError, "not-in-registry"):
        move(registry, 10**30)
    assert registry.resolve("viggo@staging").number == 1


def test_default_registry_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.delenv("TUNESMITH_REGISTRY", raising=False)
    assert Registry.default().root == tmp_path / ".local/share/tunesmith/registry"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert Registry.default().root == tmp_path / ".local/share/tunesmith/registry"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert Registry.default().root == tmp_path / "data/tunesmith/registry"
    monkeypatch.setenv("TUNESMITH_REGISTRY", "~/models")
    assert Registry.default().root == tmp_path / "models"
