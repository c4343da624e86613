"""
Compiled kernels of tenfold. Use tenfold.ops instead: it documents and checks.
"""
from __future__ import annotations
import collections.abc
import typing
__all__: list[str] = ['build_type', 'built_with_cuda', 'compiler', 'cuda_architectures', 'cuda_device_count', 'cuda_devices', 'cuda_reason', 'gather_patches', 'isa', 'isas_compiled', 'isas_supported', 'keep_ids_from_ranks', 'last_level_cache', 'openmp_runtime', 'philox4x32', 'random_keep_ids', 'raw_dropped_sum', 'raw_gather_patches', 'raw_restore_patches', 'register_torch', 'restore_patches', 'restore_patches_from_ranks', 'sanitizers', 'synchronize', 'threads']
def build_type() -> str:
    """
    CMake build type.
    """
def built_with_cuda() -> bool:
    """
    Whether this build has CUDA kernels.
    """
def compiler() -> str:
    """
    Compiler that made this module.
    """
def cuda_architectures() -> str:
    """
    What the CUDA kernels are compiled for, or ''.
    """
def cuda_device_count() -> int:
    """
    CUDA devices that the driver reports.
    """
def cuda_devices() -> list[tuple[str, int, int]]:
    """
    Name and compute capability of each CUDA device.
    """
def cuda_reason() -> str:
    """
    Why no CUDA device can be used, or ''.
    """
def gather_patches(x: typing.Any, keep_ids: typing.Any, out: typing.Any) -> typing.Any:
    """
    NotImplemented where torch has more to do than to run the kernel.
    """
def isa() -> str:
    """
    The level in use.
    """
def isas_compiled() -> list[str]:
    """
    Instruction-set levels of this build.
    """
def isas_supported() -> list[str]:
    """
    Levels this processor runs.
    """
def keep_ids_from_ranks(restore_ids: typing.Any, keep_ids: typing.Any) -> None:
    """
    Writes keep_ids[b, restore_ids[b, n]] = n for the ranks that fit.
    """
def last_level_cache() -> int:
    """
    Bytes of last-level cache.
    """
def openmp_runtime() -> str:
    """
    Path of the OpenMP library.
    """
def philox4x32(counter: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"], key: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"]) -> typing.Annotated[list[int], "FixedSize(4)"]:
    """
    One block of Philox4x32-10: four random words from a counter of four and a key of two words.
    """
def random_keep_ids(keep_ids: typing.Any, restore_ids: typing.Any, seed: typing.SupportsInt | typing.SupportsIndex, offset: typing.SupportsInt | typing.SupportsIndex, ordered: bool) -> None:
    """
    Fills both with uniform draws without replacement.
    """
def raw_dropped_sum(x: typing.Any, keep_ids: typing.Any) -> typing.Any:
    """
    Sum of the rows that keep_ids does not name.
    """
def raw_gather_patches(x: typing.Any, keep_ids: typing.Any, out: typing.Any) -> typing.Any:
    """
    Runs the kernel, whatever autograd says.
    """
def raw_restore_patches(y: typing.Any, keep_ids: typing.Any, tokens: typing.SupportsInt | typing.SupportsIndex, mask_token: typing.Any, out: typing.Any) -> typing.Any:
    """
    Runs the kernel, whatever autograd says.
    """
def register_torch(tensor_type: typing.Any, parameter_type: typing.Any, is_grad_enabled: typing.Any, increment_version: typing.Any, forward_ad: typing.Any, dispatch: typing.Any) -> None:
    """
    Tells the module how to ask torch for its state.
    """
def restore_patches(y: typing.Any, keep_ids: typing.Any, tokens: typing.Any, mask_token: typing.Any, out: typing.Any) -> typing.Any:
    """
    NotImplemented where torch has more to do than to run the kernel.
    """
def restore_patches_from_ranks(y: typing.Any, restore_ids: typing.Any, mask_token: typing.Any, out: typing.Any) -> typing.Any:
    """
    NotImplemented where torch has more to do than to run the kernel.
    """
def sanitizers() -> str:
    """
    Sanitizers built in, or ''.
    """
def synchronize() -> None:
    """
    Waits for the devices that ops have used, and raises what their kernels found wrong.
    """
def threads() -> int:
    """
    Threads that an op may use now.
    """
