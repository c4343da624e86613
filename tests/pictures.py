"""Small captioned pictures and tiny runs that several tests share."""

import numpy as np
from PIL import Image

SHAPES = ("square", "disc", "bar", "cross")
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "black": (10, 10, 10)}
# Options of a run that takes seconds: 16 patches of 4x4, half of them masked in most steps.
_TINY = """
--image-size 16 --patch-size 4 --width 32 --mixer-width 32 --head-dim 16 --depth 2 --mixer-depth 1
--batch 8 --mask-ratio 0.5 --warmup 5
"""
TINY = tuple(_TINY.split())


def shape_folder(folder, size=24):
    """One PNG and one .txt for every colour and shape: 16 pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.mgrid[:size, :size] - size // 2
    masks = {
        "square": (abs(row) < 7) & (abs(column) < 7),
        "disc": row**2 + column**2 < 64,
        "bar": abs(row) < 3,
        "cross": (abs(row) < 3) | (abs(column) < 3),
    }
    for colour, value in COLOURS.items():
        for shape in SHAPES:
            pixels = np.full((size, size, 3), 255, np.uint8)
            pixels[masks[shape]] = value
            Image.fromarray(pixels).save(folder / f"{colour}-{shape}.png")
            (folder / f"{colour}-{shape}.txt").write_text(f"{colour} {shape}\n")
    return folder
