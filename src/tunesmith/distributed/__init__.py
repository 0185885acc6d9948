"""Many processes: the process group, layers sharded by FSDP2, and how a failure ends all ranks."""
