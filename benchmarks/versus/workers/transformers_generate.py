"""Answers by transformers' `generate`: prompts sorted by length, padded on the left, in batches."""

import time
from typing import Any

import protocol


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Answer all prompts; return the answers and the seconds without loading."""
    import torch
    from transformers import AutoModelForCausalLM

    device = torch.device("cuda" if job["gpu"] else "cpu")
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).to(device).eval()
    answer_batch(model, [one[:8] for one in job["prompts"][:2]], job["stop_ids"], 2)
    began = time.perf_counter()
    answers = generate_answers(model, job["prompts"], job["stop_ids"], job["max_new_tokens"], job["batch"])
    return {"seconds": time.perf_counter() - began, "answers": answers}


def generate_answers(
    model: Any, prompts: list[list[int]], stop_ids: list[int], most: int, batch: int
) -> list[list[int]]:
    """Return the answer to each prompt, without the stop token."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        for i, ids in zip(indices, answer_batch(model, [prompts[i] for i in indices], stop_ids, most), strict=True):
            answers[i] = ids
    return answers


def answer_batch(model: Any, prompts: list[list[int]], stop_ids: list[int], most: int) -> list[list[int]]:
    """Return the answers to one batch."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[stop_ids[0]] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with torch.inference_mode():
        whole = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False, temperature=None, top_p=None,
            top_k=None, eos_token_id=stop_ids, pad_token_id=stop_ids[0],
        )  # fmt: skip
    answers = []
    for row in whole[:, width:].tolist():
        end = next((place for place, token in enumerate(row) if token in stop_ids), len(row))
        answers.append(row[:end])
    return answers


if __name__ == "__main__":
    protocol.run(work)
