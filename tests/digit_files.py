"""Small made-up digits, and files of them in the formats of MNIST's packages."""

import gzip

import numpy as np

from tenfold.data.mnist import Digits


def made_up_digits(train=60, test=30, seed=0):
    """Noise, every digit equally often."""
    rng = np.random.default_rng(seed)

    def images(count):
        return rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)

    def labels(count):
        return (rng.permutation(count) % 10).astype(np.uint8)

    return Digits(images(train), labels(train), images(test), labels(test))


def idx_bytes(array):
    """The format as its authors describe it: 0, 0, type 8, dimensions, big-endian sizes, bytes."""
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(int(size).to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_idx(folder, digits, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (
        ("train-images-idx3-ubyte", digits.train_images),
        ("train-labels-idx1-ubyte", digits.train_labels),
        ("t10k-images-idx3-ubyte", digits.test_images),
        ("t10k-labels-idx1-ubyte", digits.test_labels),
    ):
        data = idx_bytes(array)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)
