"""Exported folders open in transformers 4.57 and peft 0.17, in another environment, with the same logits and ids."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.support.tiny import recipe, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith import export_model, run_recipe

TEXT = "Say one<|im_end|> and <think> 12"
# Prints [version, logits of the last position, ids of the text, the chat template].
READER = f"""
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer({TEXT!r}).input_ids
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype="auto")
if sys.argv[1] != sys.argv[2]:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, sys.argv[1])
logits = model(torch.tensor([ids])).logits[0, -1].tolist()
print(json.dumps([transformers.__version__, logits, ids, tokenizer.chat_template]))
"""


@pytest.fixture(scope="module")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with transformers 4.57 before the packages of this one."""
    folder = tmp_path_factory.mktemp("transformers-4")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    packages = ["transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2", "peft==0.17.1"]
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", *packages], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"transformers 4.57 cannot be installed: {done.stderr[-200:]}")
    [site] = folder.glob("lib/python*/site-packages")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "others.pth").write_text(f"{ours}\n", encoding="utf-8")
    return python


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_exported_folders_open_in_transformers_4(tmp_path: Path, transformers_4: Path, kind: str) -> None:
    base = save_model(tmp_path / "base", kind)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    rope = config["rope_parameters"]
    for index, parameters in enumerate(value for value in (*rope.values(), rope) if isinstance(value, dict)):
        parameters["rope_theta"] = 500.0 + 50000 * index
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    train = {"learning_rate": 0.01, "max_steps": 2}
    tuning = {"method": "lora", "rank": 4, "alpha": 8, "rslora": True}
    run = run_recipe(recipe(tmp_path, base, train=train, tuning=tuning), out=tmp_path / "run", until="train")
    merged = export_model(f"run:{run.path}", tmp_path / "merged", to="merged").folder
    adapter = export_model(f"run:{run.path}", tmp_path / "adapter", to="adapter").folder
    plain = export_model(str(base), tmp_path / "plain", to="merged").folder  # a base that version 4 reads rightly
    tokenizer = AutoTokenizer.from_pretrained(merged)
    ids = tokenizer(TEXT).input_ids
    wanted = AutoModelForCausalLM.from_pretrained(merged)(torch.tensor([ids])).logits[0, -1].tolist()
    for arguments in ((merged, merged), (adapter, plain)):
        command = [transformers_4, "-P", "-W", "error:Unexpected keyword arguments", "-c", READER, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        version, logits, found, template = json.loads(done.stdout)
        assert version == "4.57.6"
        assert found == ids
        assert template == tokenizer.chat_template
        assert wanted == pytest.approx(logits, abs=1e-5)
