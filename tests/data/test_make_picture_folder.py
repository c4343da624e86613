import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold.data.folder import image_folder

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "make_picture_folder.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("make_picture_folder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["make_picture_folder.py", *map(str, argv)])
    script.main()


def test_letters_make_a_data_set(script, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "letters"
    run(script, monkeypatch, folder)
    assert "600 pictures" in capsys.readouterr().out and "DejaVu" in (folder / "ATTRIBUTION").read_text()
    data = image_folder(folder, 32)
    assert len(data) == len(set(data.captions)) == 600 and len(data.heldout) == 30
    assert len(np.unique(data.images.reshape(600, -1), axis=0)) == 600
    row = next(row for row, caption in enumerate(data.captions) if caption.startswith("red letter"))
    middle = data.images[row].reshape(-1, 3).astype(int)
    assert ((middle[:, 0] > 180) & (middle[:, 1] < 90) & (middle[:, 2] < 90)).any()
    # Every part of a held-out caption is seen in training.
    seen = {word for row in data.train for word in data.captions[row].split()}
    assert {word for row in data.heldout for word in data.captions[row].split()} <= seen


def test_a_folder_that_is_there_is_not_touched(script, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        run(script, monkeypatch, tmp_path)
    assert not list(tmp_path.iterdir())


def test_stamps_take_photographs_and_their_first_line(script, tmp_path, monkeypatch):
    root = tmp_path / "stamps"
    for name, caption in [
        ("animals/koala", "A koala.\nde.utf8=Ein Koala.\n"),
        ("animals/cartoon/cat", "A cat."),
        ("symbols/plus", "Plus."),
        ("food/nameless", None),
    ]:
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (40, 20), (255, 0, 0, 255)).save(path)
        if caption:
            path.with_suffix(".txt").write_text(caption)
    monkeypatch.setattr(script, "STAMPS", root)
    run(script, monkeypatch, tmp_path / "photos", "--kind", "stamps")
    lines = (tmp_path / "photos" / "captions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"file": "animals-koala.png", "caption": "A koala"}]
    image = image_folder(tmp_path / "photos", 64).images[0]
    assert (image[0] == 255).all() and (image[32] == (255, 0, 0)).all()  # whole, on a white square
