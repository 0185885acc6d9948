"""Answers by tunesmith's generation, as in `evaluate`."""

import time
from typing import Any

import protocol


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Answer all prompts; return the answers and the seconds without loading."""
    from tunesmith.fetch.reference import resolve
    from tunesmith.inference.generate import generate
    from tunesmith.model.load import choose_compute, load_base

    model = load_base(resolve(job["base"]), choose_compute("fp32")).eval()
    list(generate(model, [answer[:8] for answer in job["prompts"][:2]], stop_ids=job["stop_ids"], max_new_tokens=2))
    began = time.perf_counter()
    answers = list(generate(model, job["prompts"], stop_ids=job["stop_ids"], max_new_tokens=job["max_new_tokens"]))
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "answers": [list(answer.ids) for answer in sorted(answers, key=lambda answer: answer.index)],
    }


if __name__ == "__main__":
    protocol.run(work)
