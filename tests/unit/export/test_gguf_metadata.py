"""A GGUF file names the model's base, its licence and its data."""

import json
from pathlib import Path

from tests.support import tiny

from tunesmith.export.gguf_metadata import gguf_metadata
from tunesmith.fetch.pin import Pin
from tunesmith.fetch.reference import CARD, ModelFolder


def test_adapter_on_a_folder(tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "own-base", "llama")
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: my-terms\n---\n", encoding="utf-8")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / CARD).write_text(json.dumps({"name": "shop"}))
    found = gguf_metadata(ModelFolder("adapter", folder, base=ModelFolder("base", base)))
    assert found == {
        "general.name": "shop",
        "general.base_model.count": 1,
        "general.base_model.0.name": "own-base",
        "general.license": "other",
        "general.license.name": "my-terms",
    }


def test_base_on_the_hub(tmp_path: Path) -> None:
    base = ModelFolder("base", tiny.save_model(tmp_path / "base", "llama"), pin=Pin("hub", "org/base", "abc123"))
    folder = tmp_path / "adapter"
    folder.mkdir()
    found = gguf_metadata(ModelFolder("adapter", folder, base=base))
    assert found["general.base_model.0.name"] == "org/base"
    assert found["general.base_model.0.version"] == "abc123"
    assert found["general.base_model.0.repo_url"].endswith("/org/base")
