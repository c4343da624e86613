import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.data import features as module
from tenfold.data.features import ImageFeatures


@pytest.fixture(scope="module")
def features():
    return ImageFeatures.load()


def test_the_network_recognises_a_photograph(features):
    """Weights, colour order and normalisation are right: the portrait that matplotlib ships is a uniform.

    `military uniform` is class 652 of ImageNet, the known answer for this picture.
    """
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = Image.open(file).convert("RGB")
    square = np.asarray(photo.crop((0, 0, photo.width, photo.width)))[None]
    logits = features.network._fc(torch.from_numpy(features.extract(square)))
    assert int(logits.argmax()) == 652
    swapped = features.network._fc(torch.from_numpy(features.extract(square[..., ::-1].copy())))
    assert swapped.softmax(1)[0, 652] < logits.softmax(1)[0, 652]


def test_shapes_batches_and_order(features):
    images = np.random.default_rng(0).integers(0, 256, (module._BATCH + 3, 32, 32, 3), dtype=np.uint8)
    found = features.extract(images)
    assert found.shape == (module._BATCH + 3, 1280) and found.dtype == np.float32
    np.testing.assert_allclose(found[-1:], features.extract(images[-1:]), rtol=1e-3, atol=1e-4)
    assert features.extract(images[:0]).shape == (0, 1280)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_the_thread_count_changes_nothing_and_is_put_back(features):
    images = np.random.default_rng(2).integers(0, 256, (9, 20, 20, 3), dtype=np.uint8)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(features.extract(images))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert (found[0] == found[1]).all()


def test_a_large_set_is_kept_on_disk(features, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_KEEP_FROM", 2)
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    first = features.extract(images, tmp_path)
    (kept,) = (tmp_path / "features").iterdir()
    monkeypatch.setattr(ImageFeatures, "_compute", lambda *_: pytest.fail("computed again"))
    assert (features.extract(images, tmp_path) == first).all()
    monkeypatch.undo()
    monkeypatch.setattr(module, "_KEEP_FROM", 2)
    kept.write_bytes(kept.read_bytes()[:-8])
    assert (features.extract(images, tmp_path) == first).all()
    features.extract(images[::-1], tmp_path)
    assert len(list((tmp_path / "features").iterdir())) == 2


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 32, 32)])
def test_wrong_shapes_are_named(features, shape):
    with pytest.raises(ValueError, match=r"wanted uint8 \(N, H, W, 3\)"):
        features.extract(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="float32"):
        features.extract(np.zeros((1, 8, 8, 3), np.float32))
