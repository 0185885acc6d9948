"""Measure what the interval of several training seeds covers, on simulated scores with a known gain.

    .venv/bin/python -m benchmarks.verdict_seeds [--draws 500] [--resamples 600] [--rows 50,200] [--seeds 3,5]

Rows and seeds are crossed: all seeds answer the same rows. Prints the Markdown table of docs/verdict.md: how often the
interval covers the true gain, how often one seed's interval does, and how often equal models are called better.
The intervals of a run have more resamples, so their ends are less noisy.
"""

import argparse
import math
from itertools import product
from multiprocessing.pool import Pool

import numpy as np
from tests.support.simulations import BY_SEED

from tunesmith.scoring import bootstrap
from tunesmith.scoring.replicates import replicated_verdict

GAIN = 0.05
SEED_DEVIATIONS = (0.0, 0.05, 0.15)
NO_LIMIT = -9.0  # far from the gain: an end that excludes the limit is the usual one


def set_resamples(count: int) -> None:
    """Compute intervals from this number of resamples."""
    vars(bootstrap).update(_RESAMPLES=count, _RESAMPLES_PER_TAIL=0)


def true_gain(name: str) -> float:
    """Return the gain over seeds and rows of scores of a kind."""
    return math.exp(2) - math.exp(2 - GAIN) if name == "perplexity" else GAIN


def compare(case: tuple[str, int, int, float, int]) -> tuple[bool, bool, bool]:
    """Return whether the interval covers the gain, whether that of one seed does, and whether equals are better."""
    name, rows, seeds, deviation, number = case
    key = [rows, seeds, round(1000 * deviation), number]
    gain = true_gain(name)
    found = replicated_verdict(
        **BY_SEED[name](GAIN)(np.random.default_rng(key), rows, seeds, deviation), min_gain=NO_LIMIT, seed=number
    )
    equal = replicated_verdict(**BY_SEED[name](0.0)(np.random.default_rng(key), rows, seeds, deviation), seed=number)
    own = found.seeds[0]
    return found.low <= gain <= found.high, own.low <= gain <= own.high, equal.verdict == "better"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=600)
    parser.add_argument("--rows", default="50,200")
    parser.add_argument("--seeds", default="3,5")
    parser.add_argument("--scores", default=",".join(BY_SEED))
    options = parser.parse_args()
    row_counts, seed_counts = ([int(count) for count in text.split(",")] for text in (options.rows, options.seeds))
    print("| scores | rows | seeds | deviation of seeds | covers the true gain | one seed covers it | equal: better |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    with Pool(initializer=set_resamples, initargs=(options.resamples,)) as pool:
        for name, rows, seeds, deviation in product(
            options.scores.split(","), row_counts, seed_counts, SEED_DEVIATIONS
        ):
            cases = [(name, rows, seeds, deviation, number) for number in range(options.draws)]
            shares = np.mean(pool.map(compare, cases, chunksize=16), axis=0)
            cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
            print(f"| {name} | {rows} | {seeds} | {deviation:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
