"""Weights of a base and of adapters: opened, quantized, extended, merged, saved."""

import logging
import os

from tunesmith.estimate.memory import ONEDNN_CACHE_SIZE

# On a processor bf16 products are compiled for every shape, and 1,024 of them would be kept: 0.57 GiB, scattered over
# the heap. torch and oneDNN have a cache each, whose capacity they read at the first product.
for _name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_name, str(ONEDNN_CACHE_SIZE))

# peft imports bitsandbytes, which warns on stderr at its import that a faster kernel could be installed on processors
# with AVX512-BF16, and later of every product in fp16. Users can do nothing about either.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
