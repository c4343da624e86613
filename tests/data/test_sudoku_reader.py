import numpy as np
import pytest

from tenfold.data.sudoku import is_valid, read_puzzles, reader
from tenfold.errors import UserError

HARD = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."


def written(tmp_path, text):
    path = tmp_path / "mine.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_dots_zeros_comments_and_line_ends(tmp_path):
    path = written(tmp_path, f"\ufeff# two of mine\r\n{HARD}\r\n\r\n  {HARD.replace('.', '0')}")
    found = read_puzzles(path)
    assert len(found) == 2 and found.puzzles.dtype == found.solutions.dtype == np.uint8
    assert (found.puzzles[0] == found.puzzles[1]).all() and found.puzzles[0, 0] == 8
    assert is_valid(found.solutions).all()
    given = found.puzzles > 0
    assert (found.solutions[given] == found.puzzles[given]).all() and given.sum() == 2 * 21


def test_size_4(tmp_path):
    found = read_puzzles(written(tmp_path, "1234341.2.434.21\n0403002401020040\n"))
    assert found.puzzles.shape == (2, 16) and is_valid(found.solutions).all()
    assert found.solutions[0].tolist() == [1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HARD}\n{HARD[:80]}", r"line 2: has 80 characters, wanted 81 \(or 16"),
        (
            f"# no\n{HARD[:40]}x{HARD[41:]}",
            "line 2: character 41 is 'x', wanted 1 to 9, or 0 or . for a blank",
        ),
        ("5" + "." * 15, "line 1: character 1 is '5', wanted 1 to 4"),
        (f"{HARD[:8]}8{HARD[9:]}", "line 1: row 1 has the given 8 twice, wanted each number at most once"),
        (f"{HARD[:72]}8{HARD[73:]}", "line 1: column 1 has the given 8 twice"),
        (f"{HARD[:10]}8{HARD[11:]}", "line 1: box 1 has the given 8 twice"),
        ("12" + ".." + "..3." + "." * 8, "line 1: the puzzle has no solution, wanted exactly one"),
        (
            "\n" + "8" + "." * 80,
            "line 2: the puzzle has several solutions, .*; row [1-9], column [1-9] can be [1-9] or [1-9]$",
        ),
        (f"{HARD}\n" + "1" + "." * 15, "line 2: has 16 cells, wanted 81 as in the lines before"),
        ("# nothing\n\n", "no puzzles in it; wanted lines of 81 or 16 characters"),
        (b"\xff\xfe1", "cannot be read as UTF-8 text"),
    ],
)
def test_mistakes_name_file_line_and_what_was_wanted(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_puzzles(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_puzzle_that_search_does_not_come_to_an_end_with(tmp_path, monkeypatch):
    # Few givens that contradict each other far down: plain search takes hours.
    endless = ".....5.8....6.1.43..........1.5........1.6...3.......553.....61........4........."
    monkeypatch.setattr(reader, "_TRIES", 500)
    with pytest.raises(UserError, match=r"line 1: the puzzle has no solution that 500 tries could find"):
        read_puzzles(written(tmp_path, endless))
    assert len(read_puzzles(written(tmp_path, HARD))) == 1


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        read_puzzles(tmp_path / "none.txt")
