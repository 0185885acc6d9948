"""How to run an exported model in each program that reads its format, with the prompt of its training."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.engines.vllm import max_lora_rank
from tunesmith.export.literals import python_text, python_value
from tunesmith.export.markdown import Markdown
from tunesmith.export.prompt_code import PromptCode

_INDENT = " " * 4
_NO_NOTE = Markdown()


@dataclass(frozen=True, slots=True)
class Usage:
    """A program, the command or code that runs the model in it, and the language of that."""

    program: str
    code: str
    language: str = "bash"
    note: Markdown = _NO_NOTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An exported model, as a reader of its card has it.

    Attributes:
        to: `merged`, `adapter` or `gguf`.
        name: a name for it in servers.
        path: the folder as the reader has it: a path, or a repository on the hub.
        files: the names of the files in the folder.
        base: the name of its base on the hub; None if it is not there as trained.
        rank: the rank of its adapter; None for a model without one.
        adapter_only: whether a `.gguf` file has only the adapter.
        has_encoder: whether it is an encoder-decoder model.
        max_new_tokens: the limit of an answer in the evaluation.
        on_hub: whether `path` is a repository.
    """

    to: str
    name: str
    path: str
    files: tuple[str, ...]
    base: str | None
    rank: int | None
    adapter_only: bool
    has_encoder: bool
    max_new_tokens: int
    on_hub: bool

    @property
    def folder(self) -> str:
        """The folder for programs that cannot read a repository; `download` fills it."""
        return self.path.rpartition("/")[2] if self.on_hub else self.path

    @property
    def download(self) -> str:
        """The command that copies the repository to `folder`; empty if there is none."""
        path, folder = shlex.quote(self.path), shlex.quote(self.folder)
        return f"hf download {path} --local-dir {folder}\n" if self.on_hub else ""

    @property
    def gguf(self) -> str | None:
        """The model's `.gguf` file, if the folder has one."""
        return next((name for name in self.files if name.endswith(".gguf")), None)


def usages(target: Target, prompt: PromptCode) -> Iterator[Usage]:
    """Yield how to run the model in each program that reads its format."""
    if target.to == "gguf":
        yield from _gguf_usages(target)
    else:
        program = "transformers and peft" if target.to == "adapter" else "transformers"
        yield Usage(program, _python(target, prompt), "python")
        if not target.has_encoder:
            note = _BASE_NOTE if target.to == "adapter" and target.base is None else _NO_NOTE
            yield Usage("vLLM", _vllm(target), note=note)
        yield Usage("tunesmith", f"tunesmith serve {shlex.quote(f'{target.name}={target.path}')}")
    if not target.has_encoder:
        note = Markdown("Ollama listens on port 11434.") if "Modelfile" in target.files else _NO_NOTE
        yield Usage("a client of these servers", _client(target, prompt), "python", note)


def _python(target: Target, prompt: PromptCode) -> str:
    model_class = "AutoModelForSeq2SeqLM" if target.has_encoder else "AutoModelForCausalLM"
    where = python_text(target.path)
    if target.to == "adapter":
        model_class = model_class.replace("Auto", "AutoPeft")
        imports = f"from peft import {model_class}\nfrom transformers import AutoTokenizer"
    else:
        imports = f"from transformers import {model_class}, AutoTokenizer"
    if prompt.is_chat:
        extra = "".join(f", {name}={python_value(value)}" for name, value in _template_variables(prompt).items())
        inputs = (
            f"tokenizer.apply_chat_template(\n{_INDENT}{prompt.call}, add_generation_prompt=True, "
            f'return_dict=True, return_tensors="pt"{extra}\n)'
        )
    else:
        inputs = f'tokenizer({prompt.call}, return_tensors="pt")'
    start = "" if target.has_encoder else ', inputs["input_ids"].shape[1] :'
    return (
        f"{imports}\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({where})\n"
        f"model = {model_class}.from_pretrained({where})\n"
        f"inputs = {inputs}\n"
        f"output = model.generate(**inputs, max_new_tokens={target.max_new_tokens}, do_sample=False)\n"
        f"print(tokenizer.decode(output[0{start}], skip_special_tokens=True))"
    )


def _template_variables(prompt: PromptCode) -> dict[str, Any]:
    """Return the variables of the chat template that are valid names of arguments; others cannot be passed so."""
    tools = {"tools": prompt.tools} if prompt.tools else {}
    return {name: value for name, value in {**prompt.arguments, **tools}.items() if name.isidentifier()}


def _vllm(target: Target) -> str:
    # By default vLLM applies the sampling of the base's generation_config.json to every request.
    plain = "--generation-config vllm"
    if target.to != "adapter":
        return f"vllm serve {shlex.quote(target.path)} --served-model-name {shlex.quote(target.name)} {plain}"
    base = shlex.quote(target.base or "BASE")
    module = shlex.quote(f"{target.name}={target.folder}")
    assert target.rank is not None
    rank = max_lora_rank(target.rank)
    # By default vLLM asks an adapter with the template of the base, which lacks the system turn of its training.
    has_template = "chat_template.jinja" in target.files
    template = f" --chat-template {shlex.quote(f'{target.folder}/chat_template.jinja')}" if has_template else ""
    start = f"{target.download}vllm serve {base} --enable-lora --max-lora-rank {rank}"
    return f"{start} \\\n    --lora-modules {module}{template} {plain}"


def _gguf_usages(target: Target) -> Iterator[Usage]:
    file = shlex.quote(str(Path(target.folder) / (target.gguf or "model.gguf")))
    weights = f"-m BASE.gguf --lora {file}" if target.adapter_only else f"-m {file}"
    yield Usage("llama.cpp", f"{target.download}llama-server {weights} --jinja")
    if "Modelfile" in target.files:
        folder, name = shlex.quote(target.folder), shlex.quote(target.name)
        create = f"{target.download}cd {folder}\nollama create {name} -f Modelfile"
        yield Usage("Ollama", f"{create}\nollama run {name}", note=_OLLAMA_NOTE)


_OLLAMA_NOTE = Markdown(
    "The Modelfile was not tried in Ollama when it was written. `tunesmith prove http://127.0.0.1:11434/v1 MODEL` "
    "compares a running Ollama with the model."
)
_BASE_NOTE = Markdown("BASE is the folder that `base_model_name_or_path` in adapter\\_config.json names.")


def _client(target: Target, prompt: PromptCode) -> str:
    """Return code that asks a server with OpenAI's API."""
    # The template's variables are not sent: the exported chat template has them as its defaults.
    tools = f"\n{_INDENT}tools={python_value(prompt.tools)}," if prompt.tools else ""
    port = 8080 if target.to == "gguf" else 8000
    return (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="http://127.0.0.1:{port}/v1", api_key="none")\n'
        f"answer = client.{'chat.' if prompt.is_chat else ''}completions.create(\n"
        f"{_INDENT}model={python_text(target.name)},\n"
        f"{_INDENT}{'messages' if prompt.is_chat else 'prompt'}={prompt.call},\n"
        f"{_INDENT}temperature=0,\n"
        f"{_INDENT}max_tokens={target.max_new_tokens},{tools}\n"
        ")\n"
        f"print(answer.choices[0].{'message.content' if prompt.is_chat else 'text'})"
    )
