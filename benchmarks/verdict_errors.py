"""Measure how often the verdict errs and what its interval covers, on simulated scores with a known gain.

    .venv/bin/python -m benchmarks.verdict_errors [--seeds 400] [--rows 30,100,300]

Prints the Markdown tables of docs/verdict.md. Takes minutes: one comparison takes about as long as in a run.
"""

import argparse
from collections.abc import Sequence
from multiprocessing.pool import Pool

import numpy as np
from tests.support.simulations import EQUAL, GAINS

from tunesmith.core.verdict import Comparison
from tunesmith.scoring.verdict import paired_verdict


def compare(case: tuple[str, bool, int, int]) -> Comparison:
    """Return the comparison of one simulated pair: (kind of scores, whether the models are equal, rows, seed)."""
    name, equal, rows, seed = case
    draw = EQUAL[name] if equal else GAINS[name][0]
    return paired_verdict(**draw(np.random.default_rng([rows, seed]), rows), seed=seed)


def table(equal: bool, counts: Sequence[int], seeds: int, pool: Pool) -> str:
    """Return one table, with a row for each kind of scores and number of rows."""
    lines = [
        "| scores | rows | better | not better | cannot tell | interval covers the true gain |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in EQUAL:
        gain = 0.0 if equal else GAINS[name][1]
        for rows in counts:
            made = pool.map(compare, [(name, equal, rows, seed) for seed in range(seeds)], chunksize=8)
            shares = [
                sum(comparison.verdict == verdict for comparison in made) / seeds
                for verdict in ("better", "not_better", "cannot_tell")
            ]
            covered = sum(comparison.low <= gain <= comparison.high for comparison in made) / seeds
            cells = " | ".join(f"{100 * share:.1f} %" for share in (*shares, covered))
            lines.append(f"| {name}{'' if equal else f', gain {gain:.3f}'} | {rows} | {cells} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--rows", default="30,100,300")
    options = parser.parse_args()
    counts = [int(count) for count in options.rows.split(",")]
    with Pool() as pool:
        tables = [table(equal, counts, options.seeds, pool) for equal in (True, False)]
    print("\n\n".join(["", *tables]))


if __name__ == "__main__":
    main()
