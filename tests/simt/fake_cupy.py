"""An array type that says it is cupy's and lies on a GPU, over memory of the host.

Only a build with the emulator can work on such memory. It tests tenfold's way from Python to a kernel and
back; nothing is learned about cupy itself.
"""

import ctypes
import sys
import types

import numpy as np

CUDA = 2
CODES = {"i": 0, "u": 1, "f": 2, "V": 4, "b": 6}
BFLOAT16 = np.dtype("V2")
"""numpy has no bfloat16: two opaque bytes stand for it."""

_stream = 0
_device = 0
requested = []
"""Streams that __dlpack__ was asked to make memory ready for."""


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("owner", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class ndarray:  # noqa: N801
    """`host` seen as an array on a GPU."""

    def __init__(self, host, device=0):
        self.host, self.device_id = host, device

    dtype = property(lambda self: self.host.dtype)
    shape = property(lambda self: self.host.shape)
    device = property(lambda self: Device(self.device_id))
    strides = property(lambda self: self.host.strides)

    def __getitem__(self, index):
        return ndarray(self.host[index], self.device_id)

    def reshape(self, *shape):
        return ndarray(self.host.reshape(*shape), self.device_id)

    def astype(self, dtype):
        return ndarray(self.host.astype(dtype), self.device_id)

    def __dlpack_device__(self):
        return CUDA, self.device_id

    def __dlpack__(self, stream=None):
        requested.append(stream)
        host, item = self.host, self.host.dtype.itemsize
        rank = host.ndim
        self._shape = (ctypes.c_int64 * rank)(*host.shape)
        self._strides = (ctypes.c_int64 * rank)(*(stride // item for stride in host.strides))
        self._managed = _Managed(
            _Tensor(
                host.ctypes.data, CUDA, self.device_id, rank, CODES[host.dtype.kind], item * 8, 1,
                self._shape, self._strides, 0,
            ),
            None,
            None,
        )  # fmt: skip
        return _new_capsule(ctypes.addressof(self._managed), b"dltensor", None)


ndarray.__module__ = "cupy"


def empty(shape, dtype=np.float64):
    """Memory of ones (NaN), so that what a kernel leaves out is seen."""
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[:] = 0xFF
    return ndarray(array, _device)


def broadcast_to(array, shape):
    return ndarray(np.broadcast_to(array.host, shape), array.device_id)


class Device:
    """Context in which `empty` allocates on a device."""

    def __init__(self, number):
        self.number = number

    def __enter__(self):
        global _device
        self.before, _device = _device, self.number
        return self

    def __exit__(self, *_):
        global _device
        _device = self.before


def set_stream(pointer):
    """Make a stream the current one, by its handle."""
    global _stream
    _stream = pointer


def install():
    """Put this module in cupy's place."""
    module = types.ModuleType("cupy")
    module.ndarray, module.empty, module.broadcast_to = ndarray, empty, broadcast_to
    module.cuda = types.SimpleNamespace(
        Device=Device, get_current_stream=lambda device=None: types.SimpleNamespace(ptr=_stream)
    )
    sys.modules["cupy"] = module
