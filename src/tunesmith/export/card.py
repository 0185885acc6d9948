"""The model card: how a model was judged, the prompt to send, and whether its files are still that model.

It names no folder, user or machine, and quotes no row. All text from the model, the recipe and the data is escaped.
"""

from pathlib import Path

from tunesmith.core.files import list_files, write_text
from tunesmith.engines.vllm import highest_rank
from tunesmith.export import card_text
from tunesmith.export.base_facts import base_facts
from tunesmith.export.card_metadata import card_metadata
from tunesmith.export.markdown import Markdown, fenced, load_template
from tunesmith.export.prompt_code import prompt_code
from tunesmith.export.provenance import provenance_of
from tunesmith.export.usage import Target, usages
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.recorded import DEFAULT_MAX_NEW_TOKENS
from tunesmith.proof.record import Proof
from tunesmith.recipe.schema import Seq2SeqData
from tunesmith.tasks.recorded_data import recorded_data

README = "README.md"
_TEMPLATE = Path(__file__).parent / "card.md.j2"


def write_card(
    folder: Path,
    model: ModelFolder,
    *,
    to: str,
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
    data = recorded_data(model)
    prompt = prompt_code(data) if data else None
    files = {file: entry for file, entry in list_files(folder).items() if file != README}
    target = Target(
        to=to,
        name=facts.name,
        path=repository or path or folder.name,
        files=tuple(files),
        base=base.name if base is not None and base.is_same else None,
        rank=highest_rank(model.path) if model.base is not None else None,
        adapter_only=adapter_only,
        has_encoder=isinstance(data, Seq2SeqData),
        max_new_tokens=(facts.recipe.get("evaluate") or {}).get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS,
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
