"""The command `prove`: whether a running server still gives the answers of a model."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tunesmith.cli.app import MODELS, command
from tunesmith.cli.options import AsJson, ModelName
from tunesmith.cli.output import print_result
from tunesmith.core.errors import NotProved, RecipeError

if TYPE_CHECKING:
    from tunesmith.fetch.model_folder import ModelFolder

_Url = Annotated[str, Parameter(help="The root of a server: llama.cpp, vLLM, tunesmith, or any with OpenAI's API.")]


@command(MODELS)
def prove(
    url: _Url,
    model: ModelName,
    /,
    *,
    served_as: Annotated[
        str | None, Parameter(help="The model's name in the server. Default: the only one that it serves.")
    ] = None,
    type: Annotated[
        str | None,
        Parameter(help="Type of the server's weights, which decides the limits: f32, q8_0. Default: what it says."),
    ] = None,
    rows: int = 100,
    max_loss: float | None = None,
    as_json: AsJson = False,
) -> None:
    """Ask a running server what the model was asked, and compare its answers with the model's own in fp32.

    The answers of the model are computed once and kept in the cache. A server that offers fewer routes allows fewer
    checks, and the table names those that were not possible. The key of the server is read from OPENAI_API_KEY.

    Args:
        rows: Largest number of test rows; 0 asks probes only. The rows are those of the run that trained the model.
        max_loss: Loss in the primary metric that must be excluded, in its unit. Default: a loss must only not be shown.

    Examples:
        tunesmith prove http://127.0.0.1:8080 viggo@staging
        tunesmith prove https://host/v1 runs/viggo/ID --served-as viggo --type bf16
    """
    if rows < 0:
        raise RecipeError(f"{rows} rows cannot be asked", code="usage", hint="use --rows 0 or more")
    if not url.startswith(("http://", "https://")):
        hint = "name the URL first, then the model: tunesmith prove http://127.0.0.1:8080 MODEL"
        raise RecipeError("is not the URL of a server", where=url, code="usage", hint=hint)
    from tunesmith.engines.detect import detect_engine
    from tunesmith.fetch.reference import resolve
    from tunesmith.proof.prove import prove as prove_engine
    from tunesmith.proof.prove import require_proved
    from tunesmith.proof.questions import find_rows
    from tunesmith.proof.text import proof_text
    from tunesmith.proof.tolerances import tolerance_for

    if type is not None:
        tolerance_for(type)
    folder = resolve(model)
    found = detect_engine(url, served_as)
    kind = type or found.type or _stored_type(folder)
    asked_rows = find_rows(folder, rows) if rows else "no rows were asked for"
    proof = prove_engine(folder, found.engine, type=kind, rows=asked_rows, max_loss=max_loss)
    not_proved = None
    try:
        require_proved(proof)
    except NotProved as error:
        not_proved = error
    print_result(proof.to_json(), as_json, lambda: proof_text(proof), not_proved)


def _stored_type(model: "ModelFolder") -> str:
    """Return the type of the stored weights, in which servers run a model by default; the roughest of several."""
    from tunesmith.architecture.weight_headers import stored_dtypes

    stored = {name.lower() for name in stored_dtypes(model.root.path)}
    return next((name for name in ("bf16", "f16") if name in stored), "f32")
