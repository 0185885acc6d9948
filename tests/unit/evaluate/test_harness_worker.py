"""The rows and metrics that are read from lm-evaluation-harness's results. The harness itself is not needed."""

from dataclasses import dataclass, field
from typing import Any

from tunesmith.evaluate.harness_worker import mean_metrics, row_scores


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def corpus(values: list[Any]) -> float:
    return float(len(values))


@dataclass
class Task:
    """The methods of the harness's tasks that are called."""

    metrics: dict[str, Any]
    lower: set[str] = field(default_factory=set)

    def aggregation(self) -> dict[str, Any]:
        return self.metrics

    def higher_is_better(self) -> dict[str, bool]:
        return {metric: metric not in self.lower for metric in self.metrics}


def test_only_means_that_all_tasks_have_are_compared() -> None:
    first = Task({"acc": mean, "bleu": corpus, "brier": mean}, lower={"brier"})
    assert mean_metrics([first]) == {"acc": True, "brier": False}
    assert mean_metrics([first, Task({"brier": mean}, lower={"brier"})]) == {"brier": False}
    assert mean_metrics([Task({"bleu": corpus})]) == {}


def test_rows_are_in_the_order_of_documents_and_only_of_the_first_filter() -> None:
    samples = {
        "sums": [
            {"doc_id": 1, "filter": "strict", "acc": 1, "bleu": ("a", "b")},
            {"doc_id": 0, "filter": "strict", "acc": False, "bleu": ("a", "b")},
            {"doc_id": 0, "filter": "flexible", "acc": 1, "bleu": ("a", "b")},
        ],
        "more": [{"doc_id": 0, "filter": "none", "acc": 0.5, "bleu": ("a", "b")}],
    }
    assert row_scores(samples, ["acc"]) == [
        {"id": "sums/0", "group": "sums/0", "acc": 0.0},
        {"id": "sums/1", "group": "sums/1", "acc": 1.0},
        {"id": "more/0", "group": "more/0", "acc": 0.5},
    ]
