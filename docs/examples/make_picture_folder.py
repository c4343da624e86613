"""Write a folder of captioned pictures that are not icons, to try `tenfold train microdit --data DIR` on.

    python docs/examples/make_picture_folder.py letters                # rendered, from installed packages
    python docs/examples/make_picture_folder.py photos --kind stamps   # photographs, of a Debian package

glyphs  600 letters and digits in the DejaVu fonts that matplotlib brings (under the permissive licence of
        Bitstream Vera), in 8 colours, 3 styles, on 4 grounds: "red letter G in bold serif on yellow". No two
        are alike and every part of a caption recurs: held-out pictures show whether parts combine.
stamps  430 pictures, nearly all photographs, of animals, plants, food, tools and vehicles, each with a
        sentence, from Debian's tuxpaint-stamps-default (161 MB; GPL-2: mind it when you publish). Uses the
        installed package, else the system's own `apt-get download`; nothing is installed.

The folder gets captions.jsonl and ATTRIBUTION; a folder that is there already is not touched.
"""

import argparse
import itertools
import json
import random
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

EDGE = 128  # pixels of each picture written; training resizes

COLOURS = {
    "black": "#000000",
    "red": "#d62020",
    "orange": "#ff8c1a",
    "green": "#1f9d3a",
    "blue": "#1f55d6",
    "purple": "#8a2be2",
    "brown": "#7a4a21",
    "pink": "#ff6fb5",
}
GROUNDS = {"white": "#ffffff", "yellow": "#fff2a0", "light blue": "#c8e6ff", "light grey": "#d8d8d8"}
STYLES = {
    "bold": "DejaVuSans-Bold.ttf",
    "bold serif": "DejaVuSerif-Bold.ttf",
    "slanted serif": "DejaVuSerif-Italic.ttf",
}
GLYPHS = 600

STAMPS = Path("usr/share/tuxpaint/stamps")
NOT_PHOTOGRAPHS = {"symbols", "cartoon", "cartoons", "shapes"}


def glyphs() -> Iterator[tuple[str, Image.Image, str]]:
    """(name, picture, caption): a fixed draw from all combinations."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    signs = [(sign, "letter") for sign in string.ascii_uppercase] + [
        (sign, "digit") for sign in string.digits
    ]
    every = list(itertools.product(signs, COLOURS, STYLES, GROUNDS))
    for (sign, kind), colour, style, ground in random.Random(0).sample(every, GLYPHS):
        picture = Image.new("RGB", (EDGE, EDGE), GROUNDS[ground])
        font = ImageFont.truetype(fonts / STYLES[style], size=int(0.9 * EDGE))
        ImageDraw.Draw(picture).text((EDGE / 2, EDGE / 2), sign, COLOURS[colour], font, anchor="mm")
        caption = f"{colour} {kind} {sign} in {style} on {ground}"
        yield caption.replace(" ", "_"), picture, caption


def stamps() -> Iterator[tuple[str, Image.Image, str]]:
    """(name, picture, caption): photographs on a white square, with the first line of their text."""
    with tempfile.TemporaryDirectory() as aside:
        root = Path("/") / STAMPS
        if not root.is_dir():
            print("downloading tuxpaint-stamps-default: 161 MB, GPL-2", file=sys.stderr)
            subprocess.run(["apt-get", "download", "tuxpaint-stamps-default"], cwd=aside, check=True)
            (package,) = Path(aside).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", package, aside], check=True)
            root = Path(aside) / STAMPS
        for path in sorted(root.rglob("*.png")):
            text = path.with_suffix(".txt")
            inside = path.relative_to(root)
            if NOT_PHOTOGRAPHS & set(inside.parts) or not text.is_file():
                continue
            caption = text.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip().rstrip(".")
            if caption:
                yield "-".join(inside.with_suffix("").parts), on_white_square(Image.open(path)), caption


def on_white_square(picture: Image.Image) -> Image.Image:
    """The whole picture, scaled to fit, in the middle of a white square of EDGE pixels."""
    layered = ImageOps.contain(picture.convert("RGBA"), (EDGE, EDGE), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (EDGE, EDGE), "white")
    square.paste(layered, ((EDGE - layered.width) // 2, (EDGE - layered.height) // 2), layered)
    return square


KINDS = {
    "glyphs": (glyphs, "Rendered with the DejaVu fonts (Bitstream Vera and Arev licences) of matplotlib."),
    "stamps": (stamps, "Tux Paint stamps, copyright 2002-2022 by Bill Kendrick and others, GPL-2."),
}


def main() -> None:
    """Write the folder named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=sorted(KINDS), default="glyphs")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} is there already")
    make, attribution = KINDS[options.kind]
    options.folder.mkdir(parents=True)
    lines = []
    for name, picture, caption in make():
        picture.save(options.folder / f"{name}.png")
        lines.append(json.dumps({"file": f"{name}.png", "caption": caption}, ensure_ascii=False) + "\n")
    (options.folder / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    (options.folder / "ATTRIBUTION").write_text(attribution + "\n", encoding="utf-8")
    print(f"{options.folder}: {len(lines)} pictures. {attribution}")


if __name__ == "__main__":
    main()
