"""Answers by tunesmith's own generation, as `evaluate` asks for them."""

import time
from typing import Any

import protocol


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Answer all prompts; return the answers and how long they took, loading not counted."""
    from tunesmith.fetch.reference import resolve
    from tunesmith.inference.generate import generate
    from tunesmith.model.load import choose_compute, load_base

    model = load_base(resolve(job["base"]), choose_compute("fp32")).eval()
    list(generate(model, [one[:8] for one in job["prompts"][:2]], stop_ids=job["stop_ids"], max_new_tokens=2))
    began = time.perf_counter()
    found = list(generate(model, job["prompts"], stop_ids=job["stop_ids"], max_new_tokens=job["max_new_tokens"]))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "answers": [list(one.ids) for one in sorted(found, key=lambda one: one.index)]}


if __name__ == "__main__":
    protocol.run(work)
