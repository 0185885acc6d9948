"""The command `export`: a model in the formats of other programs."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tunesmith.cli.app import MODELS, command
from tunesmith.cli.options import AsJson, Flag, ModelName
from tunesmith.cli.output import print_result


@command(MODELS)
def export(
    model: ModelName,
    /,
    *,
    to: Annotated[
        Literal["merged", "adapter", "gguf", "hub"],
        Parameter(
            help="Format: a transformers folder, a PEFT adapter or a GGUF file. hub: an adapter if its base is there, "
            "else merged; needs --repo."
        ),
    ],
    out: Annotated[Path, Parameter(help="Folder to create.")],
    type: Annotated[
        str | None,
        Parameter(help="Type of the weights, such as f16, bf16 or q8_0. Default: that of the model; for gguf, f16."),
    ] = None,
    readers: Annotated[
        list[Literal["peft", "vllm", "llama.cpp"]] | None,
        Parameter(help="A program that must be able to read the adapter; may be given several times. Default: all."),
    ] = None,
    adapter_only: Annotated[Flag, Parameter(help="Write only the adapter as a GGUF file.")] = False,
    quantize_with: Annotated[
        str | None, Parameter(help="Path of llama.cpp's llama-quantize, which writes K-quants such as q4_k_m.")
    ] = None,
    repo: Annotated[
        str | None, Parameter(help="Repository on the hub, ORG/NAME, to upload the folder to; private if it is new.")
    ] = None,
    dry_run: Annotated[Flag, Parameter(help="With --repo: write the folder and upload nothing.")] = False,
    force: Annotated[Flag, Parameter(help="Publish it even if its proof fails. Requires --reason.")] = False,
    reason: Annotated[str | None, Parameter(help="Why; the export's manifest keeps it.")] = None,
    skip_proof: Annotated[Flag, Parameter(help="Do not prove it at all. Requires --force.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model in the format of other programs, and prove that it is still the same model.

    Examples:
        tunesmith export viggo@staging --to merged --out viggo-merged
        tunesmith export viggo@staging --to gguf --type q8_0 --out viggo-q8_0
    """
    from tunesmith.export.export import export_model
    from tunesmith.export.proving import ExportRefused
    from tunesmith.export.text import describe_export
    from tunesmith.proof.text import proof_text

    try:
        exported = export_model(
            model,
            out,
            to=to,
            type=type,
            readers=readers,
            adapter_only=adapter_only,
            quantize_with=quantize_with,
            repo=repo,
            dry_run=dry_run,
            force=force,
            reason=reason,
            skip_proof=skip_proof,
        )
    except ExportRefused as refused:
        result = {"folder": None, "proof": refused.proof.to_json()}
        print_result(result, as_json, proof_text(refused.proof), refused)
        return
    print_result(exported.to_json(), as_json, lambda: describe_export(exported, repo))
