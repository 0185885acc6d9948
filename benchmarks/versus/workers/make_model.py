"""Write a random Llama of a given shape: python make_model.py '{"folder", "shape", "tokenizer"}'."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tunesmith.fetch.reference import resolve

settings = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(resolve(settings["tokenizer"]).path)
shape = LlamaConfig(
    **settings["shape"], vocab_size=len(tokenizer), max_position_embeddings=8192, tie_word_embeddings=True,
    bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
)  # fmt: skip
torch.manual_seed(0)
AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(settings["folder"])
tokenizer.save_pretrained(settings["folder"])
