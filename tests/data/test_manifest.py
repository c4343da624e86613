import dataclasses
import json

import numpy as np
import pytest

from tenfold.data.images import CaptionedImages
from tenfold.data.manifest import Manifest
from tenfold.errors import UserError


def sample_set():
    return CaptionedImages(
        images=np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8),
        captions=[f"picture {i}" for i in range(6)],
        names=[f"{i}.png" for i in range(6)],
        groups=np.array([0, 0, 1, 2, 3, 4]),
        train=np.array([0, 1, 3, 4, 5]),
        heldout=np.array([2]),
        licence="CC0",
        attribution="nobody",
        source="a test",
    )


def test_counts_and_round_trip(tmp_path):
    manifest = Manifest.of(sample_set())
    assert (manifest.count, manifest.height, manifest.width) == (6, 4, 5)
    assert (manifest.heldout, manifest.groups, manifest.licence) == (1, 5, "CC0")
    path = tmp_path / "manifest.json"
    path.write_text(manifest.to_json(), encoding="utf-8")
    assert Manifest.read(path) == manifest
    manifest.verify(sample_set())


def changed_pixel(data):
    images = data.images.copy()
    images[5, 3, 4, 2] ^= 1
    return dataclasses.replace(data, images=images)


CHANGES = {
    "images_sha256": changed_pixel,
    "captions_sha256": lambda data: dataclasses.replace(data, captions=[*data.captions[:-1], "another"]),
    "split_sha256": lambda data: dataclasses.replace(
        data, train=np.array([0, 1, 2, 4, 5]), heldout=np.array([3])
    ),
    "height": lambda data: dataclasses.replace(data, images=data.images.transpose(0, 2, 1, 3)),
}


@pytest.mark.parametrize("field", CHANGES)
def test_any_change_is_found_and_named(field):
    with pytest.raises(UserError, match=field):
        Manifest.of(sample_set()).verify(CHANGES[field](sample_set()))


def test_a_folder_that_moved_is_still_the_same_data():
    Manifest.of(sample_set()).verify(dataclasses.replace(sample_set(), source="/elsewhere"))


@pytest.mark.parametrize("text", ["", "[]", '{"count": 3}', "\x00"])
def test_a_damaged_manifest_names_its_file(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        Manifest.read(path)


def test_a_manifest_with_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(dataclasses.asdict(Manifest.of(sample_set())) | {"extra": 1}))
    with pytest.raises(UserError, match="extra"):
        Manifest.read(path)
