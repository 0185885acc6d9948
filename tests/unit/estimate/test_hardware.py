"""Detecting the device, the precision and the memory without torch gives what torch would give."""

import os
import stat
from pathlib import Path

import pytest

from tunesmith.estimate import hardware as module
from tunesmith.estimate.hardware import (
    PRECISION_BYTES,
    available_memory_gib,
    choose_precision,
    detect_hardware,
    process_memory_limit_gib,
)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake `nvidia-smi` in this folder that prints the file `answer` and writes its arguments to `arguments`."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat {tmp_path}/answer\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module.metadata, "version", lambda name: "2.13.0")
    return tmp_path


def test_bf16_support_of_the_cpu_agrees_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = detect_hardware()
    assert (found.device, found.has_bf16) == ("cpu", bool(torch.cpu._is_avx512_bf16_supported()))
    assert 0 < found.memory_gib == pytest.approx(process_memory_limit_gib(), rel=0.2)


@pytest.mark.parametrize(
    ("answer", "has_bf16", "memory"), [("15360, 7.0", False, 15.0), ("81559, 9.0\n81559, 9.0", True, 79.6)]
)
def test_gpu_memory_and_bf16_come_from_nvidia_smi(smi: Path, answer: str, has_bf16: bool, memory: float) -> None:
    (smi / "answer").write_text(answer)
    found = detect_hardware()
    assert (found.device, found.has_bf16) == ("cuda", has_bf16)
    assert found.memory_gib == pytest.approx(memory - 0.6, abs=0.1)  # minus the CUDA context


def test_the_first_visible_gpu_is_queried(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (smi / "answer").write_text("1000, 8.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert detect_hardware().device == "cuda"
    assert "--id=2 " in (smi / "arguments").read_text()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_hardware().device == "cpu"


def test_a_torch_build_without_cuda_uses_the_cpu(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (smi / "answer").write_text("81559, 9.0")
    monkeypatch.setattr(module.metadata, "version", lambda name: "2.13.0+cpu")
    assert detect_hardware().device == "cpu"


@pytest.mark.parametrize("answer", ["", "No devices were found", "[N/A], [N/A]"])
def test_unusable_answers_of_nvidia_smi_mean_no_gpu(smi: Path, answer: str) -> None:
    (smi / "answer").write_text(answer)
    assert detect_hardware().device == "cpu"


@pytest.mark.parametrize(
    ("setting", "device", "has_bf16", "quantized", "expected"),
    [
        ("auto", "cpu", False, False, "fp32"), ("auto", "cpu", True, False, "bf16"),
        ("auto", "cuda", False, False, "fp32"), ("auto", "cuda", False, True, "fp16"),
        ("auto", "cpu", False, True, "fp32"), ("fp16", "cuda", True, False, "fp16"),
        ("fp32", "cuda", True, True, "fp32"),
    ],
)  # fmt: skip
def test_automatic_precision(setting: str, device: str, has_bf16: bool, quantized: bool, expected: str) -> None:
    found = choose_precision(setting, device, has_bf16=has_bf16, quantized=quantized)  # type: ignore[arg-type]
    assert found == expected
    assert PRECISION_BYTES[found] == (4 if expected == "fp32" else 2)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_the_tightest_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A Slurm job is a group inside a group, and the page cache of either can be dropped."""
    v1, v2 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"), ("memory.max", "memory.current", "")
    limit, current, prefix = v1 if kind == "v1" else v2
    root = tmp_path / "sys"
    for group, most, used in ((root / "slurm", 3 * 2**30, 2**30), (root / "slurm" / "job", 0, 2**30)):
        group.mkdir(parents=True)
        (group / limit).write_text(str(most) if most else ("max" if kind == "v2" else str(2**62)))
        (group / current).write_text(str(used))
        (group / "memory.stat").write_text(f"{prefix}active_file {2**28}\n{prefix}inactive_file {2**28}\n")
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/slurm/job\n3:cpu:/elsewhere\n" if kind == "v1" else "0::/slurm/job\n")
    monkeypatch.setattr(module, "_PROCESS_CGROUPS", own)
    monkeypatch.setattr(module, f"_{kind.upper()}", root)
    assert available_memory_gib() == pytest.approx(2.5)
