"""Weights of a base and of adapters: opened, quantized, extended, merged, saved."""

import logging

# peft imports bitsandbytes, which warns on stderr at its import that a faster kernel could be installed on processors
# with AVX512-BF16, and later of every product in fp16. Users can do nothing about either.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
