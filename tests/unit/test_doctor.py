"""`tunesmith doctor` reports facts of this machine, and missing requirements with hints, but never a secret."""

import builtins
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith import doctor
from tunesmith.doctor import examine_machine, machine_text

SECRET = "hf_thisIsASecretToken"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an empty cache."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))


def items() -> dict[str, Any]:
    found: dict[str, Any] = examine_machine()["items"]
    return found


def test_the_report_is_complete_and_is_json() -> None:
    found = examine_machine()
    assert json.loads(json.dumps(found)) == found
    assert {"python", "tunesmith", "torch", "cores", "memory", "cpu bf16", "disk here", "cache", "registry"} <= set(
        found["items"]
    )
    assert {item["state"] for item in found["items"].values()} <= {"ok", "note", "lacks"}
    for item in found["items"].values():
        assert set(item) == {"state", "value", "text", "hint"}
        assert item["hint"] or item["state"] != "lacks"


def test_ready_means_that_no_requirement_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_memory_gib", lambda: 16.0)
    assert examine_machine()["ready"]
    monkeypatch.setattr(doctor, "available_memory_gib", lambda: 0.5)
    found = examine_machine()
    assert not found["ready"]
    assert found["items"]["memory"]["state"] == "lacks"
    assert machine_text(found).endswith(": memory")
    assert f"hint: {found['items']['memory']['hint']}" in machine_text(found)


def test_a_full_disk_is_a_missing_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    found = items()
    assert found["disk here"]["state"] == found["disk of cache"]["state"] == "lacks"


def test_a_package_that_is_not_installed_is_a_missing_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = doctor.environment()
    monkeypatch.setattr(doctor, "environment", lambda: {**facts, "peft": None})
    peft = items()["peft"]
    assert (peft["state"], peft["value"], "scripts/setup" in peft["hint"]) == ("lacks", None, True)


def test_other_items_are_reported_if_torch_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise ImportError("libcudart.so.13: cannot open shared object file\nmore")
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    found = items()
    assert found["compute"]["state"] == "lacks"
    assert found["compute"]["text"].endswith("libcudart.so.13: cannot open shared object file")
    assert found["cache"]["state"] == "ok"


def test_gpus_are_reported_with_memory_and_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    def memory(index: int) -> tuple[int, int]:
        if index == 2:
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore")
        return 10 * 2**30, (16 + index) * 2**30

    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"V{index}")
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    found = items()
    assert "gpu" not in found
    assert found["gpu 1"]["value"] == {"name": "V1", "memory_gib": 17.0, "free_gib": 10.0, "bf16": False}
    assert all(fact in found["gpu 0"]["text"] for fact in ("V0", "16.0 GiB", "10.0", "no bf16"))
    assert found["gpu 2"]["state"] == "lacks"
    assert found["gpu 2"]["text"].endswith("devices are busy or unavailable")


@pytest.mark.parametrize("where", ["variable", "file"])
def test_a_hub_token_is_reported_and_never_printed(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert items()["hub token"]["value"] is False
    if where == "variable":
        monkeypatch.setenv("HF_TOKEN", SECRET)
    else:
        (tmp_path / "token").write_text(SECRET, encoding="utf-8")
    found = examine_machine()
    assert found["items"]["hub token"]["value"] is True
    assert SECRET not in json.dumps(found) + machine_text(found)


def test_offline_mode_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in items()["hub"]["text"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert items()["hub"]["value"] == {"offline": False}


def test_the_cache_is_reported_with_its_models(tmp_path: Path) -> None:
    assert items()["cache"]["value"]["models"] == []
    assert not (tmp_path / "cache").exists(), "doctor writes nothing"
    for name in ("llm-small", "unfinished"):
        (tmp_path / "cache" / "models" / name).mkdir(parents=True)
    (tmp_path / "cache" / "models" / "llm-small" / "manifest.json").write_text("{}", encoding="utf-8")
    assert items()["cache"]["value"]["models"] == ["llm-small"]


def test_the_text_has_one_line_per_item_and_hint() -> None:
    found = examine_machine()
    lines = machine_text(found).splitlines()
    hints = sum(item["hint"] is not None for item in found["items"].values())
    assert len(lines) == len(found["items"]) + hints + 2
