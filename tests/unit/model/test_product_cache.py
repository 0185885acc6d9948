"""The cache of matrix products that oneDNN compiles for every shape is bounded, and so is its memory."""

import os
import re
import subprocess
import sys

import pytest

from tunesmith.estimate.memory import ONEDNN_CACHE_GIB, ONEDNN_CACHE_SIZE

NAMES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
PROGRAM = f"""
import re, torch
from pathlib import Path
import tunesmith.model
from tunesmith.model.memory import trim_heap

weight = torch.ones(64, 64, dtype=torch.bfloat16)

def resident_kib(first, last):
    for rows in range(first, last):
        torch.nn.functional.linear(torch.ones(rows, 64, dtype=torch.bfloat16), weight)
    trim_heap()
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

before = resident_kib(64, 65)
print(resident_kib(65, 65 + 4 * {ONEDNN_CACHE_SIZE}) - before)
"""


def environment(**variables: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name not in NAMES}, **variables}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_cached_products_take_no_more_memory_than_estimated() -> None:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment(), timeout=200
    )
    assert int(process.stdout) / 2**20 < 1.15 * ONEDNN_CACHE_GIB


def test_cache_capacity_set_by_the_user_is_kept() -> None:
    code = f"import os, tunesmith.model; print(*(os.environ[name] for name in {NAMES!r}))"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100,
        env=environment(LRU_CACHE_CAPACITY="7"),
    )  # fmt: skip
    assert re.findall(r"\d+", process.stdout) == ["7", str(ONEDNN_CACHE_SIZE)]
