"""The user's own folder of pictures with captions."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tenfold.data import splits
from tenfold.data.images import CaptionedImages
from tenfold.errors import UserError

CAPTIONS = "captions.jsonl"
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
OTHER_PICTURES = {
    ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".svg", ".ico", ".tga",
    ".ppm", ".pgm",
}  # fmt: skip


def image_folder(
    path: Path,
    size: int,
    heldout_share: float = splits.HELDOUT_SHARE,
    licence: str = "",
    attribution: str = "",
) -> CaptionedImages:
    """Every picture under ``path`` with its caption, centre-cropped to a square and resized to ``size``.

    Captions are in ``captions.jsonl`` (a line per picture: {"file": path inside the folder, "caption": text})
    or, without that file, in a .txt of the same name beside each picture. Subfolders count, names that begin
    with a dot do not. Pictures are in the order of their names; transparent ones are laid over white, an
    orientation noted by a camera is applied, smaller ones are enlarged (Lanczos in both directions).
    Nothing is left out silently: what cannot be used is an error, a picture of another kind or a link that
    leads nowhere too. Other files may lie beside them. The first line of a file LICENSE (or LICENCE) is the
    licence of the pictures, and a file ATTRIBUTION says who made them, unless the arguments do.

    Errors: UserError naming the file (and line) for a missing or empty folder, an unreadable picture, a
    picture without a caption, a caption without a picture, a damaged line, a picture named twice.
    """
    if size < 1:
        raise UserError(f"size is {size}, wanted at least 1 pixel")
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    listed = folder / CAPTIONS
    captions = _listed_captions(listed) if listed.is_file() else _sidecar_captions(folder)
    names = sorted(captions)
    with ThreadPoolExecutor() as pool:  # pillow decodes and resizes without holding the interpreter lock
        pairs = list(pool.map(lambda name: _read(folder / name, size), names))
    images = np.stack([pair.image for pair in pairs])
    groups = splits.group(np.stack([pair.thumbnail for pair in pairs]))
    train, heldout = splits.split(groups, names, heldout_share)
    return CaptionedImages(
        images=images,
        captions=[captions[name] for name in names],
        names=names,
        groups=groups,
        train=train,
        heldout=heldout,
        licence=licence or _first_line(folder, "LICENSE", "LICENCE") or "not stated",
        attribution=attribution or _first_line(folder, "ATTRIBUTION"),
        source=str(folder),
    )


def _visible_files(folder: Path) -> Iterator[PurePosixPath]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if path.is_symlink() and not path.is_file():
            kind = "to a folder, which is not followed" if path.is_dir() else "that leads to no file"
            raise UserError(f"{path}: a link {kind}; put the files there themselves, or remove it")
        if path.is_file():
            if not is_unicode(str(inside)):
                raise UserError(f"{folder}: the name {str(inside)!r} is not UTF-8; rename the file")
            if path.suffix.lower() in OTHER_PICTURES:
                raise UserError(
                    f"{path}: a picture of a kind that is not read; convert it to one of "
                    f"{' '.join(sorted(PICTURES))}, or move it away"
                )
            yield PurePosixPath(inside.as_posix())


def _first_line(folder: Path, *names: str) -> str:
    """The first line with text of the first of these files that is there; nothing without one."""
    for name in names:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return next((line.strip() for line in lines if line.strip()), "")
    return ""


def is_unicode(text: str) -> bool:
    """Whether text is free of halves of surrogate pairs, which no encoding can write."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _sidecar_captions(folder: Path) -> dict[str, str]:
    """Picture's name -> caption, from the .txt beside each."""
    files = list(_visible_files(folder))
    present = set(files)
    pictures = [file for file in files if file.suffix.lower() in PICTURES]
    if not pictures:
        kinds = " ".join(sorted(PICTURES))
        raise UserError(f"{folder}: no pictures in it; wanted files that end in {kinds}")
    owner: dict[PurePosixPath, PurePosixPath] = {}
    captions = {}
    for picture in pictures:
        text = picture.with_suffix(".txt")
        if text in owner:
            raise UserError(
                f"{folder / picture}: shares {text} with {owner[text]}; give one of them another name"
            )
        owner[text] = picture
        if text not in present:
            raise UserError(
                f"{folder / picture}: no caption; write one into {folder / text}, "
                f"or list every picture in {folder / CAPTIONS}"
            )
        captions[str(picture)] = _sidecar_text(folder / text)
    for file in files:
        if file.suffix == ".txt" and file not in owner:
            raise UserError(
                f"{folder / file}: a caption without a picture; add {file.stem} with one of the endings "
                f"{' '.join(sorted(PICTURES))}, or move the file away"
            )
    return captions


def _sidecar_text(path: Path) -> str:
    try:
        caption = " ".join(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if not caption:
        raise UserError(f"{path}: the caption is empty; write one or move the picture away")
    return caption


def _listed_captions(path: Path) -> dict[str, str]:
    """Picture's name -> caption, from captions.jsonl."""
    folder = path.parent
    captions: dict[str, str] = {}
    line_of: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, caption = _parse_line(line, f"{path}, line {number}")
        if name in captions:
            raise UserError(f"{path}, line {number}: {name} was already named in line {line_of[name]}")
        if not _is_file(folder / name):
            raise UserError(f"{path}, line {number}: there is no file {str(folder / name)[:200]}")
        captions[name], line_of[name] = caption, number
    if not captions:
        raise UserError(
            f'{path}: no captions in it; wanted lines like {{"file": "a.png", "caption": "a red apple"}}'
        )
    files = set(_visible_files(folder))
    pictures = sorted(file for file in files if file.suffix.lower() in PICTURES)
    twofold = [file.with_suffix(".txt") for file in pictures if file.with_suffix(".txt") in files]
    if twofold:
        raise UserError(
            f"{folder / twofold[0]}: captions are in {path}; move the .txt files or that file away"
        )
    unnamed = [str(file) for file in pictures if str(file) not in captions]
    if unnamed:
        raise UserError(
            f"{folder / unnamed[0]}: no caption in {path} (nor for {len(unnamed) - 1} other pictures); "
            "add a line for each or move them away"
        )
    return captions


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long to be one
        return False


def _parse_line(line: str, where: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    if not isinstance(entry, dict) or set(entry) != {"file", "caption"}:
        raise UserError(
            f'{where}: wanted an object with exactly the keys "file" and "caption", got {line[:80]}'
        )
    name, caption = entry["file"], entry["caption"]
    if not isinstance(name, str) or not isinstance(caption, str) or not caption.strip():
        raise UserError(f'{where}: "file" and "caption" must be text that is not empty, got {line[:80]}')
    if not is_unicode(name + caption):
        raise UserError(
            f"{where}: half of a surrogate pair is no character; write the whole, or leave it out"
        )
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(f"{where}: {name} is not a path inside the folder")
    return str(inside), " ".join(caption.split())


@dataclass(frozen=True)
class _Picture:
    image: NDArray[np.uint8]  # (size, size, 3)
    thumbnail: NDArray[np.uint8]  # (TWIN_SIZE, TWIN_SIZE, 3)


def _read(path: Path, size: int) -> _Picture:
    try:
        with Image.open(path) as file:
            picture = _over_white(ImageOps.exif_transpose(file), path)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: cannot be read as a picture ({error}); replace it or move it and its caption away"
        ) from error
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    square = picture.crop((left, top, left + edge, top + edge))
    return _Picture(
        *(np.asarray(square.resize((n, n), Image.Resampling.LANCZOS)) for n in (size, splits.TWIN_SIZE))
    )


def _over_white(picture: Image.Image, path: Path) -> Image.Image:
    if picture.mode[0] in "IF":  # 16-bit, 32-bit and float pictures would be clipped, not scaled
        raise UserError(f"{path}: has more than 8 bits per channel ({picture.mode}); save it with 8")
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    layered = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
