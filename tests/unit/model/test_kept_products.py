"""The products that oneDNN compiles and keeps for every shape are bounded, and so is the memory that they take."""

import os
import re
import subprocess
import sys

import pytest

from tunesmith.estimate.memory import ONEDNN_CACHE_GIB, ONEDNN_CACHE_SIZE

NAMES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
GROWN = f"""
import re, torch
from pathlib import Path
import tunesmith.model
from tunesmith.model.memory import trim_heap

weight = torch.ones(64, 64, dtype=torch.bfloat16)

def held(first, last):
    for rows in range(first, last):
        torch.nn.functional.linear(torch.ones(rows, 64, dtype=torch.bfloat16), weight)
    trim_heap()
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

before = held(64, 65)
print(held(65, 65 + 4 * {ONEDNN_CACHE_SIZE}) - before)
"""


def environment(**given: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name not in NAMES}, **given}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_products_of_many_shapes_take_no_more_memory_than_is_expected() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROWN], capture_output=True, text=True, check=True, env=environment(), timeout=200
    )
    assert int(done.stdout) / 2**20 < 1.15 * ONEDNN_CACHE_GIB


def test_a_capacity_of_the_users_own_stands() -> None:
    code = f"import os, tunesmith.model; print(*(os.environ[name] for name in {NAMES!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100,
        env=environment(LRU_CACHE_CAPACITY="7"),
    )  # fmt: skip
    assert re.findall(r"\d+", done.stdout) == ["7", str(ONEDNN_CACHE_SIZE)]
