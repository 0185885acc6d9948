"""The demo's job as a script of TRL and transformers: answers of base, training, answers of tuned, scores.

The score is that of the demo: the share of questions whose query has the result of the reference query. The script has
no confidence interval and no checks of the rows, which would take more time.
"""

import contextlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import hf
import protocol
from transformers_generate import generate_answers
from trl_train import trainer_of


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Answer, train, answer, score."""
    rows = protocol.rows_of(job)
    with Path(job["questions"]).open(encoding="utf-8") as file:
        questions = [json.loads(line) for line in file]
    stages, clock = {}, time.perf_counter()
    model, tokenizer, lora = hf.parts(job)
    if job["gpu"]:
        model = model.to("cuda")
    prompts = [
        list(tokenizer.apply_chat_template(question["messages"], add_generation_prompt=True, return_dict=False))
        for question in questions
    ]
    stages["load"], clock = time.perf_counter() - clock, time.perf_counter()
    base = _score(model, tokenizer, prompts, questions, job)
    stages["answers of the base"], clock = time.perf_counter() - clock, time.perf_counter()
    model.train()
    trainer = trainer_of(job, model, tokenizer, lora, rows)
    trainer.train()
    stages["training"], clock = time.perf_counter() - clock, time.perf_counter()
    tuned = _score(trainer.model.eval(), tokenizer, prompts, questions, job)
    stages["answers of the tuned"] = time.perf_counter() - clock
    return {"score_base": base, "score_tuned": tuned, "stages": {k: round(v, 1) for k, v in stages.items()}}


def _score(model: Any, tokenizer: Any, prompts: list[list[int]], questions: list[dict[str, Any]], job: Any) -> float:
    answers = generate_answers(model, prompts, [tokenizer.eos_token_id], job["max_new_tokens"], job["batch"])
    with contextlib.closing(sqlite3.connect(f"file:{job['database']}?mode=ro", uri=True)) as connection:
        right = [
            _found(connection, tokenizer.decode(ids, skip_special_tokens=True))
            == _found(connection, question["reference"])
            for ids, question in zip(answers, questions, strict=True)
        ]
    return sum(right) / len(right)


def _found(connection: Any, query: str) -> list[Any] | None:
    try:
        rows = connection.execute(query.strip()).fetchmany(1000)
    except (sqlite3.Error, sqlite3.Warning):
        return None
    return rows if " ORDER BY " in query.upper() else sorted(rows, key=repr)


if __name__ == "__main__":
    protocol.run(work)
