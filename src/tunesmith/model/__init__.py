"""Load models and adapters, quantize, extend, merge and save them."""

import logging
import os

from tunesmith.estimate.memory import ONEDNN_CACHE_SIZE

# On a CPU, bf16 matrix products are compiled for every shape and up to 1,024 of them cached: 0.57 GiB, scattered over
# the heap. torch and oneDNN each have such a cache, and read its capacity at the first product.
for _name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_name, str(ONEDNN_CACHE_SIZE))

# peft imports bitsandbytes. On import it warns that a faster kernel could be installed on CPUs with AVX512-BF16, and
# later it warns of every product in fp16. Users cannot do anything about either.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
