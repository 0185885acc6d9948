"""Recognize out-of-memory errors, and return freed memory to the system."""

import contextlib
import ctypes
import gc

import torch

_MMAP_THRESHOLD, _LARGE_BYTES = -3, 2**18
_OOM_MESSAGES = ("not enough memory", "can't allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory: from CUDA, torch's CPU allocator or Python."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error).lower() for message in _OOM_MESSAGES)


def free_memory() -> None:
    """Return unreferenced memory to the system, such as the tensors of a failed pass."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Return free pages of the heap to the system, with glibc's malloc_trim(3); without glibc, do nothing.

    The C library would keep freed memory between blocks that are still in use.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def return_freed_memory_at_once() -> None:
    """Let the C library map large blocks individually, so that freed memory returns to the system at once.

    Less memory stays resident, but steps are slower. glibc only (see mallopt(3)); without it, do nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
