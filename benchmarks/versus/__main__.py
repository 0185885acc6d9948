"""`python -m benchmarks.versus`, which `./scripts/benchmark` runs in its environment."""

import sys

from benchmarks.versus.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
