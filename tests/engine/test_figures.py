"""Figures are real pictures, the same for the same input, and name bad input."""

import io

import numpy as np
import pytest
from PIL import Image

from tenfold.engine.figures import curves, image_grid, loss_curve, to_png


def pictures(count):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("image", [pictures(1)[0], pictures(1)[0, ..., 0], pictures(1)[0, ::2, ::-1]])
def test_png_is_exact(image):
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(to_png(image)))), image)


def test_png_wants_bytes():
    with pytest.raises(ValueError, match="float64"):
        to_png(np.zeros((3, 3)))


@pytest.mark.parametrize("rows", [0, 3, 300])
def test_loss_curve(tmp_path, rows):
    metrics = [{"step": i, "loss": 1 / (i + 1), "lr": 1.0} for i in range(rows)]
    metrics += [{"step": i, "heldout_loss": 0.5} for i in range(0, rows, 10)]
    metrics += [{"step": rows, "loss": float("nan")}]
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        loss_curve(metrics, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert Image.open(files[0]).size == (840, 480)


@pytest.mark.parametrize(("count", "columns"), [(1, 4), (6, 4), (8, 4)])
def test_image_grid(tmp_path, count, columns):
    captions = ["red apple", "", "costs $5 or $6", "a long caption " * 9, "x_y^z", "ü", "7", "8"][:count]
    image_grid(pictures(count), captions, tmp_path / "a.png", columns)
    image_grid(pictures(count), captions, tmp_path / "b.png", columns)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert np.asarray(Image.open(tmp_path / "a.png")).std() > 20


def test_image_grid_names_bad_input(tmp_path):
    with pytest.raises(ValueError, match="2 images, 1 captions"):
        image_grid(pictures(2), ["a"], tmp_path / "a.png")
    with pytest.raises(ValueError, match="uint8 of shape"):
        image_grid(pictures(1)[0], ["a"], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_curves_of_one_arm_share_a_colour(tmp_path):
    points, above = [(1, 1.0), (2, 0.5), (3, 0.2)], [(1, 2.0), (2, 1.0), (3, 0.4)]
    one_arm, two_arms = tmp_path / "one.png", tmp_path / "two.png"
    curves({"a-seed0": points, "a-seed1": above}, one_arm, "step", "loss")
    curves({"a-seed0": points, "b-seed0": above}, two_arms, "step", "loss")

    def colours(path):
        pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
        coloured = pixels[pixels.max(1) - pixels.min(1) > 100]
        return {tuple(colour) for colour in (coloured // 128)}

    assert len(colours(one_arm)) < len(colours(two_arms))
