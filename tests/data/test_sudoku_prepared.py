import errno
from dataclasses import replace

import numpy as np
import pytest

from sudoku_symmetries import random_symmetry
from tenfold.data.sudoku import (
    SIZE_4,
    SIZE_9,
    SudokuManifest,
    canonical,
    generate,
    independent,
    load,
    prepare,
    prepare_file,
    prepared,
)
from tenfold.data.sudoku.independent import check_unique
from tenfold.errors import UserError

pytest.importorskip("pysat", reason="python-sat, of the extra 'train', is not installed")

SMALL = replace(SIZE_9, train=12, test=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sudoku") / "made"
    return folder, prepare(folder, SMALL, check=True)


@pytest.fixture
def copy(made, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in made[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_what_is_written_is_read_and_described(made):
    folder, manifest = made
    data, again = load(folder), generate(SMALL)
    for one, other in ((data.train, again.train), (data.test, again.test)):
        assert (one.puzzles == other.puzzles).all() and (one.solutions == other.solutions).all()
    assert SudokuManifest.read(folder / "manifest.json") == manifest
    assert (manifest.train, manifest.test, manifest.size) == (12, 4, 9)
    assert manifest.grids == manifest.classes == 16
    assert manifest.shared_grids == manifest.shared_classes == 0
    assert manifest.checked_by.startswith("python-sat ") and manifest.settings["seed"] == 0
    givens = (np.concatenate([data.train.puzzles, data.test.puzzles]) > 0).sum(axis=1)
    assert {int(count): times for count, times in manifest.givens.items()} == {
        int(count): (givens == count).sum() for count in set(givens)
    }
    assert manifest.mean_givens == pytest.approx(givens.mean())


def test_size_4_by_class_and_by_grid(tmp_path):
    by_grid = prepare(tmp_path / "grid", replace(SIZE_4, train=60, test=20))
    assert by_grid.shared_grids == 0 and by_grid.classes == by_grid.shared_classes == 2
    by_class = prepare(tmp_path / "class", replace(SIZE_4, train=60, test=20, split="class"))
    assert by_class.shared_grids == by_class.shared_classes == 0 and by_class.classes == 2
    assert by_class.checked_by is None and load(tmp_path / "class").test.puzzles.shape == (20, 16)


def change_puzzle(folder):
    text = (folder / "train.txt").read_text()
    place = next(place for place, character in enumerate(text) if character in "123456789")
    (folder / "train.txt").write_text(text[:place] + "0" + text[place + 1 :])


def change_solution(folder):
    text = (folder / "test_solutions.txt").read_text()
    (folder / "test_solutions.txt").write_text(text[1] + text[0] + text[2:])


def swap_sides(folder):
    for name in ("{}.txt", "{}_solutions.txt"):
        one, other = folder / name.format("train"), folder / name.format("test")
        first, second = one.read_text().split("\n", 1), other.read_text().split("\n", 1)
        one.write_text(f"{second[0]}\n{first[1]}")
        other.write_text(f"{first[0]}\n{second[1]}")


def cut_off(folder):
    (folder / "train.txt").write_bytes((folder / "train.txt").read_bytes()[:-7])


def drop_line(folder):
    (folder / "train.txt").write_bytes((folder / "train.txt").read_bytes()[:-82])


def letters(folder):
    text = (folder / "test.txt").read_text()
    (folder / "test.txt").write_text("x" + text[1:])


def lose(folder):
    (folder / "test_solutions.txt").unlink()


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (change_puzzle, "not the puzzles of manifest.json: .* wanted"),
        (change_solution, r"test_solutions\.txt, line 1: no solution of the puzzle in that line"),
        (swap_sides, "not the puzzles of manifest.json: train_sha256 is"),
        (cut_off, r"train\.txt: wanted lines of 81 digits"),
        (drop_line, "11 train puzzles, but 12 solutions"),
        (letters, r"test\.txt: wanted lines of 81 digits from 0 to 9"),
        (lose, r"test_solutions\.txt: cannot be read"),
        (lose_manifest, r"manifest\.json: not a readable data manifest"),
    ],
)
def test_harm_is_seen_before_use(copy, harm, message):
    load(copy)
    harm(copy)
    with pytest.raises(UserError, match=message):
        load(copy)


def test_a_folder_that_exists_is_left_alone(copy):
    before = (copy / "train.txt").read_bytes()
    with pytest.raises(UserError, match="exists already; give another folder"):
        prepare(copy, SMALL)
    assert (copy / "train.txt").read_bytes() == before
    with pytest.raises(UserError, match="no such folder to make x in"):
        prepare(copy / "nowhere" / "x", SMALL)


def test_a_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(SudokuManifest, "to_json", full)
    with pytest.raises(UserError, match=r"cannot write .*out: full"):
        prepare(tmp_path / "out", replace(SIZE_4, train=3, test=1))
    assert list(tmp_path.iterdir()) == []


def lines(boards):
    return "\n".join("".join(map(str, board)) for board in boards)


def with_blanks(puzzle, rng):
    """A random symmetry of a puzzle, blanks kept."""
    image = random_symmetry(puzzle + 1, rng, names=False) - 1
    return np.concatenate([[0], rng.permutation(9) + 1])[image]


def test_a_users_puzzles_are_split_by_class(tmp_path, made):
    """Each puzzle beside three of its images: they stay together."""
    data, rng = load(made[0]), np.random.default_rng(0)
    images = [
        image
        for puzzle in data.train.puzzles
        for image in [puzzle] + [with_blanks(puzzle, rng) for _ in range(3)]
    ]
    (tmp_path / "mine.txt").write_text(lines(images))
    manifest = prepare_file(tmp_path / "out", tmp_path / "mine.txt", test_share=0.3, check=True)
    both = load(tmp_path / "out")
    assert manifest.train + manifest.test == len(images) and 0 < manifest.test <= 0.3 * len(images)
    assert manifest.shared_classes == 0 and manifest.classes == 12
    assert not set(map(bytes, canonical(both.train.solutions))) & set(
        map(bytes, canonical(both.test.solutions))
    )
    assert manifest.source == "mine.txt" and manifest.settings is None and manifest.licence == "not stated"


def test_shares_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match=r"share of test puzzles is 1\.0, wanted 0 or more and below 1"):
        prepare_file(tmp_path / "out", tmp_path / "mine.txt", test_share=1.0)


def test_the_independent_solver_refuses(made):
    data = load(made[0]).train
    check_unique(data.puzzles, data.solutions)
    fewer = data.puzzles.copy()
    fewer[3] = 0
    fewer[3, :9] = data.solutions[3, :9]
    with pytest.raises(UserError, match=r"puzzle 3 has (several|another) solution"):
        check_unique(fewer, data.solutions)
    wrong = data.puzzles.copy()
    wrong[5] = data.solutions[5]
    wrong[5, 0] = wrong[5, 1]
    with pytest.raises(UserError, match="puzzle 5 has no solution"):
        check_unique(wrong, data.solutions)
    with pytest.raises(UserError, match="puzzle 0 has another solution than the one beside it"):
        check_unique(data.puzzles[:1], data.solutions[1:2])


def test_several_solutions_are_seen_when_the_first_is_the_one_beside_it():
    """Two numbers that can change places in a board of size 4: both ways are solutions, either is refused."""
    board = np.array([[1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]])
    other = np.where(board == 1, 2, np.where(board == 2, 1, board))
    puzzle = np.where(board > 2, board, 0)
    said = set()
    for solution in (board, other):
        with pytest.raises(UserError, match=r"puzzle 0 has (several|another) solution") as caught:
            check_unique(puzzle, solution)
        said.add(str(caught.value).split()[3])
    assert said == {"several", "another"}


def test_a_missing_solver_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pysat.solvers", None)
    monkeypatch.setattr(prepared, "generate", lambda *_: pytest.fail("worked first"))
    with pytest.raises(UserError, match=r"needs python-sat.*pip install 'tenfold\[train\]'"):
        prepare(tmp_path / "out", SMALL, check=True)
    with pytest.raises(UserError, match="needs python-sat"):
        independent.solver_name()
