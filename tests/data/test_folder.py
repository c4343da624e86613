import json
import os

import numpy as np
import pytest
from PIL import Image

from tenfold.data.folder import image_folder
from tenfold.data.splits import TWIN_SIZE
from tenfold.errors import UserError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(path, colour=RED, size=(40, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def listing(folder, *entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def noise_folder(folder, count, seed=0):
    draw = np.random.default_rng(seed)
    for i in range(count):
        pixels = draw.integers(0, 256, (36, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(f"picture number {i}\n")


def test_sidecars_and_listing_give_the_same_set(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        picture(folder / "x" / "red.PNG", RED)
        picture(folder / "blue.jpg", BLUE)
    (a / "x" / "red.txt").write_text("a  red\nsquare\n")
    (a / "blue.txt").write_text("\ufeffein blaues Quadrat für dich", encoding="utf-8")
    listing(
        b,
        {"file": "x/red.PNG", "caption": " a red square"},
        "",
        {"file": "blue.jpg", "caption": "ein blaues Quadrat für dich"},
    )
    one, two = image_folder(a, 16), image_folder(b, 16)
    assert one.captions == two.captions == ["ein blaues Quadrat für dich", "a red square"]
    assert one.names == two.names == ["blue.jpg", "x/red.PNG"]
    assert one.images.shape == (2, 16, 16, 3) and one.images.dtype == np.uint8
    assert (one.images == two.images).all()
    assert (one.images[1] == RED).all()


def test_the_middle_is_cut_out_and_averaged(tmp_path):
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 200  # the middle square
    pixels[:, 40:44] = 0  # 4 of its columns: one at a quarter of the size
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("stripe")
    row = image_folder(tmp_path, 8).images[0, 4, :, 0].astype(int)
    assert row[2] < 30 and abs(row[[0, 4, 5, 6, 7]] - 200).max() < 12


def test_small_pictures_are_enlarged(tmp_path):
    picture(tmp_path / "a.png", BLUE, size=(3, 5))
    (tmp_path / "a.txt").write_text("blue")
    assert (image_folder(tmp_path, 32).images[0] == BLUE).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path, mode):
    layered = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    layered.paste((0, 0, 0, 255), (0, 0, 10, 20))
    if mode == "P":
        layered = layered.quantize(4)
    layered.convert(mode).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("half")
    image = image_folder(tmp_path, 20).images[0]
    assert (image[:, :8] == 0).all() and (image[:, 12:] == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    ending = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (20, 20), "white").convert(mode).save(tmp_path / f"a.{ending}")
    (tmp_path / "a.txt").write_text("white")
    assert (image_folder(tmp_path, 8).images >= 250).all()


def test_the_camera_s_orientation_is_applied(tmp_path):
    turned = Image.new("RGB", (30, 30), RED)
    turned.paste(BLUE, (0, 0, 30, 15))  # blue above; orientation 3 says: upside down
    exif = turned.getexif()
    exif[274] = 3
    turned.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("flag")
    image = image_folder(tmp_path, 10).images[0]
    assert (image[0] == RED).all() and (image[9] == BLUE).all()


def test_twins_share_a_side_and_the_split_does_not_depend_on_the_size(tmp_path):
    noise_folder(tmp_path, 60)
    for i in range(0, 60, 3):  # every third picture has a twin that differs in one pixel
        twin = Image.open(tmp_path / f"{i:03}.png")
        twin.putpixel((3, 3), (0, 0, 0))
        twin.save(tmp_path / f"twin{i:03}.png")
        (tmp_path / f"twin{i:03}.txt").write_text("again")
    data = image_folder(tmp_path, 24, heldout_share=0.2)
    row = {name: i for i, name in enumerate(data.names)}
    held = set(data.heldout.tolist())
    assert len(held) == 16 and len(data) == 80
    for i in range(0, 60, 3):
        assert (row[f"{i:03}.png"] in held) == (row[f"twin{i:03}.png"] in held)
    other = image_folder(tmp_path, TWIN_SIZE, heldout_share=0.2)
    assert other.heldout.tolist() == data.heldout.tolist()
    assert other.groups.tolist() == data.groups.tolist()


def test_hidden_files_are_not_pictures(tmp_path):
    noise_folder(tmp_path, 1)
    (tmp_path / "._000.png").write_bytes(b"resource fork")
    picture(tmp_path / ".thumbnails" / "x.png")
    assert image_folder(tmp_path, 8).names == ["000.png"]


def spoil_missing(folder):
    return folder / "nowhere", "no such folder"


def spoil_file(folder):
    return picture(folder / "a.png"), "not a folder"


def spoil_empty(folder):
    (folder / "notes.md").write_text("nothing here")
    return folder, "no pictures"


def spoil_unreadable(folder):
    (folder / "bad.png").write_bytes(b"not a png")
    (folder / "bad.txt").write_text("bad")
    return folder, r"bad\.png: cannot be read"


def spoil_truncated(folder):
    path = picture(folder / "cut.jpg", size=(400, 400), quality=95)
    os.truncate(path, path.stat().st_size // 2)
    (folder / "cut.txt").write_text("cut")
    return folder, r"cut\.jpg: cannot be read"


def spoil_no_caption(folder):
    picture(folder / "lonely.png")
    return folder, r"lonely\.png: no caption; write one into .*lonely\.txt"


def spoil_empty_caption(folder):
    picture(folder / "a.png")
    (folder / "a.txt").write_text(" \n")
    return folder, r"a\.txt: the caption is empty"


def spoil_binary_caption(folder):
    picture(folder / "a.png")
    (folder / "a.txt").write_bytes(b"\xff\xfe\x00")
    return folder, r"a\.txt: cannot be read as UTF-8"


def spoil_orphan(folder):
    noise_folder(folder, 1)
    (folder / "old.txt").write_text("its picture is gone")
    return folder, r"old\.txt: a caption without a picture"


def spoil_shared_caption(folder):
    picture(folder / "a.png")
    picture(folder / "a.jpg")
    (folder / "a.txt").write_text("which?")
    return folder, r"a\.png: shares a\.txt with a\.jpg"


def spoil_json(folder):
    picture(folder / "a.png")
    listing(folder, {"file": "a.png", "caption": "a"}, "", '{"file": ')
    return folder, r"captions\.jsonl, line 3: not JSON"


def spoil_key(folder):
    picture(folder / "a.png")
    listing(folder, {"file": "a.png", "text": "a"})
    return folder, r"line 1: wanted an object with exactly the keys"


def spoil_type(folder):
    picture(folder / "a.png")
    listing(folder, {"file": "a.png", "caption": 7})
    return folder, r"line 1: .* must be text"


def spoil_listed_empty(folder):
    picture(folder / "a.png")
    listing(folder, {"file": "a.png", "caption": " "})
    return folder, r"line 1: .* must be text that is not empty"


def spoil_no_lines(folder):
    picture(folder / "a.png")
    listing(folder)
    return folder, r"captions\.jsonl: no captions in it"


def spoil_listed_missing(folder):
    picture(folder / "a.png")
    listing(folder, {"file": "a.png", "caption": "a"}, {"file": "b.png", "caption": "b"})
    return folder, r"line 2: there is no file .*b\.png"


def spoil_twice(folder):
    picture(folder / "a.png")
    listing(folder, {"file": "a.png", "caption": "a"}, {"file": "./a.png", "caption": "b"})
    return folder, r"line 2: a\.png was already named in line 1"


def spoil_unlisted(folder):
    picture(folder / "a.png")
    picture(folder / "sub" / "b.png")
    picture(folder / "sub" / "c.png")
    listing(folder, {"file": "a.png", "caption": "a"})
    return folder, r"sub/b\.png: no caption in .* 1 other"


def spoil_both_kinds(folder):
    noise_folder(folder, 2)
    listing(folder, {"file": "000.png", "caption": "a"}, {"file": "001.png", "caption": "b"})
    return folder, r"000\.txt: captions are in .*captions\.jsonl; move"


def spoil_outside(folder):
    picture(folder / "in" / "a.png")
    picture(folder / "b.png")
    listing(folder / "in", {"file": "../b.png", "caption": "b"})
    return folder / "in", r"line 1: \.\./b\.png is not a path inside"


def spoil_deep(folder):
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(folder / "deep.png")
    (folder / "deep.txt").write_text("16 bit")
    return folder, r"deep\.png: has more than 8 bits"


def spoil_surrogate_caption(folder):
    picture(folder / "a.png")
    listing(folder, '{"file": "a.png", "caption": "half \\ud800"}')
    return folder, r"line 1: half of a surrogate pair"


def spoil_surrogate_name(folder):
    picture(folder / "a.png")
    listing(folder, '{"file": "\\udfff.png", "caption": "a"}')
    return folder, r"line 1: half of a surrogate pair"


def spoil_long_name(folder):
    picture(folder / "a.png")
    listing(folder, {"file": "a" * 5000 + ".png", "caption": "a"})
    return folder, r"line 1: there is no file .*aaa"


def spoil_bytes_in_name(folder):
    picture(folder / "a.png")
    (folder / "a.txt").write_text("a")
    os.rename(folder / "a.png", os.fsencode(folder) + b"/\xff.png")  # noqa: PTH104
    return folder, r"the name '\\udcff\.png' is not UTF-8"


def spoil_other_kind(folder):
    noise_folder(folder, 2)
    (folder / "b.GIF").write_bytes(b"GIF89a")
    return folder, r"b\.GIF: a picture of a kind that is not read; convert it"


def spoil_dead_link(folder):
    noise_folder(folder, 2)
    (folder / "b.png").symlink_to(folder / "gone.png")
    return folder, r"b\.png: a link that leads to no file"


def spoil_linked_folder(folder):
    (folder / "more").mkdir()
    (folder / "in").mkdir()
    noise_folder(folder / "in", 2)
    (folder / "in" / "more").symlink_to(folder / "more")
    return folder / "in", r"more: a link to a folder, which is not followed"


SPOILS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_mistakes_name_the_file_on_one_line(tmp_path, spoil):
    path, message = spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        image_folder(path, 16)
    assert "\n" not in str(caught.value)


def test_licence_and_attribution_are_read_from_their_files(tmp_path):
    noise_folder(tmp_path, 2)
    assert image_folder(tmp_path, 8).licence == "not stated"
    (tmp_path / "LICENCE").write_text("\nCC BY 4.0\nand more\n")
    (tmp_path / "ATTRIBUTION").write_text("Drawn by Ada.\n")
    data = image_folder(tmp_path, 8)
    assert (data.licence, data.attribution, len(data)) == ("CC BY 4.0", "Drawn by Ada.", 2)
    assert image_folder(tmp_path, 8, licence="mine").licence == "mine"


def test_size_must_be_positive(tmp_path):
    noise_folder(tmp_path, 1)
    with pytest.raises(UserError, match="size is 0"):
        image_folder(tmp_path, 0)
