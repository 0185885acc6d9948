"""tunesmith beside other trainers, measured in turns on one machine: `./scripts/benchmark`."""
