"""Large arrays without the cost of new memory at every call."""

from tenfold import _core
from tenfold.ops._arrays import whole

__all__ = ["reuse_large_buffers"]

_MIB = 2**20


def reuse_large_buffers(limit_mib: int = 1024) -> bool:
    """Let the C library keep freed arrays of up to `limit_mib` MiB for the next ones.

    glibc takes blocks above 32 MiB from the operating system at every allocation and gives them back when
    they are freed. Writing such a block for the first time costs up to twenty times the writing: the system
    clears and maps it page by page. After this call such blocks are kept and used again. It holds for the
    whole process, whoever allocates (torch and numpy too), in its main thread; other threads keep blocks
    up to 64 MiB. The process then stays as large as it once was. Importing tenfold.nn or tenfold.logic
    makes this call.

    Args:
        limit_mib: size in MiB up to which blocks are kept, 1 to 1024.

    Returns:
        Whether it could be done: not with other C libraries than glibc, nor where the environment sets
        MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ or glibc.malloc tunables, which win.

    Raises:
        ValueError: limit_mib is out of range.
        TypeError: limit_mib is no whole number.
    """
    limit_mib = whole("limit_mib", limit_mib)
    if not 1 <= limit_mib <= 1024:
        raise ValueError(f"limit_mib is {limit_mib}, want 1 <= limit_mib <= 1024")
    return _core.keep_freed_memory(limit_mib * _MIB)
