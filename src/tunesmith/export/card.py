"""The model card: how a model was judged, the prompt to send, and whether its files are still that model.

It names no folder, user or machine, and quotes no row. All text from the model, the recipe and the data is escaped.
"""

from pathlib import Path

from tunesmith.core.files import list_files, read_json, write_text
from tunesmith.export import card_text
from tunesmith.export.base_facts import base_facts
from tunesmith.export.card_metadata import card_metadata
from tunesmith.export.markdown import Markdown, fenced, load_template
from tunesmith.export.prompt_code import prompt_code
from tunesmith.export.provenance import provenance_of
from tunesmith.export.usage import Target, usages
from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.proof.record import Proof
from tunesmith.recipe.data_record import load_data
from tunesmith.recipe.schema import Seq2SeqData

README = "README.md"
_DEFAULT_NEW_TOKENS = 256
_TEMPLATE = Path(__file__).parent / "card.md.j2"


def write_card(
    folder: Path,
    model: ModelFolder,
    *,
    to: str,
    name: str | None = None,
    path: str | None = None,
    repository: str | None = None,
    adapter_only: bool = False,
    proof: Proof | None = None,
    forced: str | None = None,
) -> Path:
    """Write the model card of an exported model to its folder, as README.md, and return its path.

    Args:
        folder: the folder with the exported files; the card lists their digests.
        model: the model that was exported.
        to: the format: `merged`, `adapter` or `gguf`.
        name: a name for the model; by default that in the registry, or that of the recipe.
        path: the place that a reader opens; by default the name of the folder.
        repository: the repository on the hub that the reader opens instead.
        adapter_only: whether a `.gguf` file has only the adapter.
        proof: the comparison of the files with the model; None if they were not compared.
        forced: why they were published although they were not compared.

    Raises:
        RecipeError: another version of tunesmith recorded the prompts of the model.
        DamagedFile: the verdict of the model is damaged.
    """
    facts, base = provenance_of(model), base_facts(model)
    data = load_data(model.card["data"], model.path / CARD) if model.card.get("data") else None
    prompt = prompt_code(data) if data else None
    files = {file: entry for file, entry in list_files(folder).items() if file != README}
    target = Target(
        to,
        name or facts.name,
        repository or path or folder.name,
        tuple(files),
        base.name if base is not None and base.is_same else None,
        _highest_rank(model),
        adapter_only,
        isinstance(data, Seq2SeqData),
        (facts.recipe.get("evaluate") or {}).get("max_new_tokens") or _DEFAULT_NEW_TOKENS,
        on_hub=repository is not None,
    )
    text = load_template(_TEMPLATE).render(
        metadata=Markdown(card_metadata(target, facts, base, is_chat=prompt is not None and prompt.is_chat)),
        facts=facts,
        target=target,
        summary=card_text.summary(target, facts, base),
        verdict_text=card_text.verdict_text(facts.verdict),
        prompt=prompt,
        prompt_block=fenced(prompt.function, "python") if prompt else None,
        decoding=card_text.decoding(facts.recipe),
        limits=card_text.length_limits(model, data),
        usages=[(usage, fenced(usage.code, usage.language)) for usage in (usages(target, prompt) if prompt else ())],
        proof=proof,
        proof_text=card_text.proof_text(proof, forced),
        training=list(card_text.training(model, facts, base)),
        file_table=card_text.file_table(files),
    )
    write_text(folder / README, text)
    return folder / README


def _highest_rank(model: ModelFolder) -> int | None:
    """Return the highest rank of an adapter's modules; None for a full model."""
    if model.base is None:
        return None
    config = read_json(model.path / "adapter_config.json")
    ranks: list[int] = [config["r"], *(config.get("rank_pattern") or {}).values()]
    return max(ranks)
