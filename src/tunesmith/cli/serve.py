"""The command `serve`: answer requests over HTTP."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tunesmith.cli.app import MODELS, command
from tunesmith.cli.options import AsJson, Flag, ServedModels
from tunesmith.cli.output import print_json
from tunesmith.core.errors import RecipeError

Port = Annotated[int, Parameter(help="Port; 0 takes one that is free.")]


@command(MODELS)
def serve(
    *models: ServedModels,
    base: Flag = False,
    host: str = "127.0.0.1",
    port: Port = 8000,
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    system: Literal["recipe", "client"] = "recipe",
    api_key_file: Path | None = None,
    allowed_host: list[str] | None = None,
    max_tokens: int | None = None,
    cache: float | None = None,
    queue: int = 64,
    timeout: float = 300.0,
    drain: int = 30,
    engine: Literal["llama.cpp", "vllm"] | None = None,
    type: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Answer requests over HTTP, as OpenAI's API, until Ctrl-C or SIGTERM.

    A model of the registry is served under NAME@ALIAS, NAME@3 and NAME. When its alias moves, the new version replaces
    the old one without losing a request. The API key is in the environment variable TUNESMITH_API_KEY or in a file.

    Args:
        base: Serve the base of the models too, under its own name.
        host: Address to listen on. Any other than one of this machine only needs an API key.
        precision: Precision to compute in. Default: that of training. Only fp32 gives answers that never depend on the
            other requests.
        system: Whose system turn a conversation without one gets: that of the recipe, or none (client).
        api_key_file: File whose first line is the API key; it is read again when it changes.
        allowed_host: Host name under which clients may reach the server, besides its address; may be given several
            times.
        max_tokens: Largest number of tokens of a prompt with its answer; longer requests are refused. Default: what the
            model and the memory allow.
        cache: Memory for keys and values, in GiB. Default: a quarter of the free memory, at most 8.
        queue: Number of requests that may wait; further ones get status 429.
        timeout: Seconds in which an answer must be complete, including the time in the queue.
        drain: Seconds for requests to finish after SIGTERM.
        engine: Another program that serves one model: it is exported and proved, the program is started, and what it
            answers is proved again. Only --host, --port, --max-tokens and --type have an effect on it.
        type: Type of the weights for --engine: f16, bf16, f32, or a type of GGUF for llama.cpp. Default: f16 for
            llama.cpp, that of the model for vLLM.
        as_json: Print the address and the models as one line of JSON when the server is ready.

    Examples:
        tunesmith serve shop-sql@staging shop-sql@1 --base
        tunesmith serve shop-sql@staging --engine llama.cpp --type q8_0
    """
    if not models:
        raise RecipeError("there is no model to serve", code="usage", hint="pass one or more, such as NAME@staging")
    _require("--port", port, 0 <= port <= 65535, "0 to 65535")
    _require("--max-tokens", max_tokens, max_tokens is None or max_tokens >= 2, "2 or more")
    _require("--cache", cache, cache is None or 0 < cache < float("inf"), "above 0 GiB")
    _require("--queue", queue, queue >= 0, "0 or more")
    _require("--timeout", timeout, 0 < timeout < float("inf"), "above 0 seconds")
    _require("--drain", drain, drain >= 0, "0 or more seconds")
    if type is not None and engine is None:
        raise RecipeError("--type has no effect without --engine", code="usage", hint="use --precision")
    if engine is not None:
        own = {
            "--base": base, "--precision": precision, "--system": system != "recipe", "--api-key-file": api_key_file,
            "--allowed-host": allowed_host, "--cache": cache, "--queue": queue != 64, "--timeout": timeout != 300,
            "--drain": drain != 30, "a second model": len(models) > 1,
        }  # fmt: skip
        _refuse_own_options(own, engine)
        from tunesmith.serve.engine import EngineOptions, serve_by_engine

        by_engine = EngineOptions(engine=engine, host=host, port=port, type=type, slot_tokens=max_tokens)
        serve_by_engine(models[0], by_engine, announce=partial(_announce, _engine_announcement, as_json))
        return
    from tunesmith.serve.command import ServeOptions, serve_models
    from tunesmith.serve.pool import PoolOptions

    pool = PoolOptions(precision=precision, system=system, cache_gib=cache, max_tokens=max_tokens, max_waiting=queue)
    options = ServeOptions(
        host=host, port=port, base=base, pool=pool, api_key_file=api_key_file, allowed_hosts=allowed_host or (),
        answer_seconds=timeout, drain_seconds=drain,
    )  # fmt: skip
    serve_models(models, options, announce=partial(_announce, announcement, as_json))


def _announce(text_of: Callable[[dict[str, Any]], str], as_json: bool, facts: dict[str, Any]) -> None:
    if as_json:
        print_json(facts, indent=None)
    else:
        print(text_of(facts))
    sys.stdout.flush()


def _refuse_own_options(own: Mapping[str, object], engine: str) -> None:
    for name in (name for name, is_set in own.items() if is_set):
        hint = "leave it out, or leave out --engine"
        raise RecipeError(f"{name} has no effect with --engine {engine}", code="no-effect", hint=hint)


def _engine_announcement(facts: dict[str, Any]) -> str:
    return (
        f"{facts['engine']} serves {facts['model']} ({facts['type']}) at {facts['url']}\n"
        f"  proved again over HTTP; its log is {facts['log']}\n  {_curl(facts, facts['model'])}"
    )


def _require(option: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise RecipeError(f"{option} is {value}", code="usage", hint=f"it can be {allowed}")


def announcement(facts: dict[str, Any]) -> str:
    """Return the first lines of the server: its address, its models, its memory, and a request to try."""
    names = ", ".join(name if name == own else f"{name} ({own})" for name, own in facts["models"].items())
    lines = [f"serving {names} at {facts['url']}"]
    for worker in facts["workers"]:
        gib = (worker["cache_bytes"] + worker["prefix_bytes"]) / 2**30
        at_once = worker["one_at_a_time"] and f"one answer at a time ({worker['one_at_a_time']})"
        lines.append(
            f"  {at_once or str(worker['slots']) + ' answers at the same time'}, each of up to "
            f"{worker['slot_tokens']:,} tokens with its prompt; cache {gib:.2f} GiB; {worker['precision']}"
        )
    for name, template in facts["prompts"].items():
        lines.append(f"  {name}: messages are sent as they are; send a `row` to fill the recipe's prompt {template!r}")
    lines.append(f"  {_curl(facts, next(iter(facts['models'])))}")
    return "\n".join(lines)


def _curl(facts: dict[str, Any], model: str) -> str:
    """Return a request to try."""
    key = ' -H "Authorization: Bearer $TUNESMITH_API_KEY"' if facts["api_key"] else ""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return f"curl {facts['url']}/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
