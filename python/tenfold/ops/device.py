"""Waiting for the GPU, for those who want to know about wrong ids at a certain point of their program."""

from tenfold import _core

__all__ = ["synchronize"]


def synchronize() -> None:
    """Wait for the GPUs that ops have used, and raise what their kernels found wrong.

    Ops on a GPU return before their kernels have run, so they cannot raise for a wrong id. The next op on a
    GPU does, if the kernel has run by then; this function makes sure of it. Nothing happens where no GPU
    was used.

    Raises:
        ValueError: an id was out of range or doubled; names the argument, sample and position of one of them.
        RuntimeError: CUDA reports an error.
    """
    _core.synchronize()
