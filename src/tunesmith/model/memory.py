"""Memory that did not suffice, and memory that is given back."""

import contextlib
import ctypes
import gc

import torch

_MMAP_THRESHOLD, _LARGE_BYTES = -3, 2**18
_SAID = ("not enough memory", "can't allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory did not suffice: of CUDA, of torch's CPU allocator, or of Python."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)


def free_memory() -> None:
    """Give back what nothing holds any more, such as the tensors of a failed pass."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Return whole pages of freed memory to the system, by glibc's malloc_trim(3); elsewhere nothing changes.

    The C library keeps freed memory between blocks that are still in use.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def return_freed_memory_at_once() -> None:
    """Let the C library give freed memory back instead of keeping it in pieces: less is resident, and steps are slower.

    Large pieces are then mapped one by one. glibc only (see mallopt(3)); elsewhere nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
