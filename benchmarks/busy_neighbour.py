"""Measure the cost of a busy neighbour process if threads wait by long spins, short spins or sleep.

    .venv/bin/python benchmarks/busy_neighbour.py [--rounds 3]

Each measurement is a separate process that runs forward and backward passes through layers of the embedded model's
sizes, on all cores, for five seconds. The three policies alternate, with and without a process that keeps one core
busy, so that a drift of the machine affects all alike. Prints a Markdown table.
"""

import argparse
import os
import statistics
import subprocess
import sys

PASSES = """
import time, torch
torch.manual_seed(0)
layers = torch.nn.Sequential(*[m for _ in range(8) for m in (torch.nn.Linear(576, 1536), torch.nn.SiLU(),
                                                              torch.nn.Linear(1536, 576))])
x = torch.randn(512, 576)
for _ in range(3):
    layers(x).sum().backward()
began, passes = time.perf_counter(), 0
while time.perf_counter() - began < 5:
    layers(x).sum().backward()
    passes += 1
print(passes / (time.perf_counter() - began))
"""
POLICIES = {"long": {}, "short": {"GOMP_SPINCOUNT": "20000"}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}}


def passes_per_second(policy: str) -> float:
    """Return the speed of one process."""
    environment = {**os.environ, **POLICIES[policy]}
    done = subprocess.run([sys.executable, "-c", PASSES], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Measure all combinations in alternation, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print("| neighbour | long spin, passes/s | short spin, passes/s | sleep, passes/s |\n|---|--:|--:|--:|")
    for condition in ("none", "one busy process"):
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if condition != "none" else None
        try:
            speeds = {policy: [] for policy in POLICIES}
            for _ in range(rounds):
                for policy in POLICIES:
                    speeds[policy].append(passes_per_second(policy))
        finally:
            if neighbour:
                neighbour.kill()
        cells = [f"{statistics.median(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in speeds.values()]
        print(f"| {condition} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
