"""`python -m benchmarks.versus`, which `./scripts/benchmark` starts once there is an environment."""

import sys

from benchmarks.versus.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
