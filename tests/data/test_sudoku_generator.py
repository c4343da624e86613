import random
from dataclasses import replace

import numpy as np
import pytest

from tenfold.data.sudoku import SIZE_4, SIZE_9, canonical, count_classes, generate, generator, is_valid, units
from tenfold.data.sudoku.generator import GIVENS_OF_SINGLES, minimal_puzzle, singles_puzzle
from tenfold.data.sudoku.search import all_boards, random_board, solve
from tenfold.errors import UserError

SMALL_4 = replace(SIZE_4, train=200, test=40)
SMALL_9 = replace(SIZE_9, train=24, test=6)


def rows(boards):
    return set(map(bytes, boards))


@pytest.fixture(scope="module", params=[SMALL_4, replace(SMALL_4, split="class"), SMALL_9], ids=str)
def made(request):
    return request.param, generate(request.param)


def test_each_puzzle_has_its_solution_and_no_other(made):
    settings, data = made
    assert len(data.train) == settings.train and len(data.test) == settings.test
    for part in (data.train, data.test):
        assert part.puzzles.dtype == part.solutions.dtype == np.uint8
        assert is_valid(part.solutions).all()
        for puzzle, solution in zip(part.puzzles.tolist(), part.solutions.tolist(), strict=True):
            assert solve(settings.size, puzzle) == [solution]


def test_size_4_puzzles_by_enumeration():
    """Without the solver: of the 288 boards exactly one agrees with a puzzle."""
    boards, data = np.array(all_boards(4)), generate(SMALL_4)
    for puzzle in data.train.puzzles:
        assert ((boards == puzzle) | (puzzle == 0)).all(axis=1).sum() == 1


def test_givens_are_within_their_range(made):
    settings, data = made
    givens = (np.concatenate([data.train.puzzles, data.test.puzzles]) > 0).sum(axis=1)
    assert settings.givens[0] <= givens.min() and givens.max() <= settings.givens[1]
    assert abs(givens.mean() - settings.mean_givens) < 1


def test_no_class_or_grid_is_on_both_sides(made):
    settings, data = made
    assert not rows(data.train.solutions) & rows(data.test.solutions)
    assert len(rows(data.train.puzzles) | rows(data.test.puzzles)) == settings.train + settings.test
    if settings.split == "class":
        assert not rows(canonical(data.train.solutions)) & rows(canonical(data.test.solutions))
    if settings.size == 9:
        assert count_classes(np.concatenate([data.train.solutions, data.test.solutions])) == 30


def test_size_4_by_grid_keeps_58_grids_for_the_test():
    data = generate(SIZE_4)
    assert len(rows(data.test.solutions)) == 58 and len(rows(data.train.solutions)) == 230


def test_seeds_and_processes(made):
    settings, data = made
    again = generate(settings, processes=2)
    other = generate(replace(settings, seed=1))
    assert (again.train.puzzles == data.train.puzzles).all() and (
        again.test.puzzles == data.test.puzzles
    ).all()
    assert (again.train.solutions == data.train.solutions).all()
    assert not (other.train.puzzles == data.train.puzzles).all()
    # More training puzzles leave those that were there, and the test puzzles, as they were.
    more = generate(replace(settings, train=settings.train + 3))
    assert (more.train.puzzles[: settings.train] == data.train.puzzles).all()


def test_these_settings_make_these_puzzles():
    """Recorded: when this changes, VERSION of the generator must too."""
    data = generate(replace(SMALL_9, train=1, test=1))
    assert "".join(map(str, data.train.puzzles[0])) == RECORDED_9
    assert "".join(map(str, generate(replace(SIZE_4, train=1, test=1)).train.puzzles[0])) == RECORDED_4


RECORDED_9 = "001370500400601800376080210057200908030007450200009000080120004762003000914000003"
RECORDED_4 = "0403002401020040"


def test_minimal_puzzles_have_no_cell_to_spare():
    rng = random.Random(5)
    solution = random_board(9, rng)
    puzzle = minimal_puzzle(9, solution, rng)
    assert solve(9, puzzle) == [solution]
    for cell in range(81):
        if puzzle[cell]:
            assert len(solve(9, [*puzzle[:cell], 0, *puzzle[cell + 1 :]])) == 2


def only_places(board, size):
    """Blanks that are the only place for a number in a row, column or box, with that number."""
    found = {}
    seen_by = {
        cell: {int(o) for unit in units(size) if cell in unit for o in unit} for cell in range(size**2)
    }
    for unit in units(size):
        for number in range(1, size + 1):
            places = [
                int(cell)
                for cell in unit
                if not board[cell] and all(board[other] != number for other in seen_by[int(cell)])
            ]
            if len(places) == 1 and number not in board[unit]:
                found[places[0]] = number
    return found


@pytest.mark.parametrize("size", [4, 9])
def test_singles_are_solved_by_filling_in_the_only_place_of_a_number(size):
    rng = random.Random(3)
    for _ in range(5):
        solution = random_board(size, rng)
        board = np.array(singles_puzzle(size, solution, rng))
        assert solve(size, board.tolist()) == [solution]
        while not board.all():
            places = only_places(board, size)
            assert places
            for cell, number in places.items():
                board[cell] = number
        assert board.tolist() == solution


def test_generated_singles_have_the_published_number_of_givens():
    settings = replace(SMALL_9, givens=GIVENS_OF_SINGLES, deduction="singles")
    counts = (generate(settings).train.puzzles > 0).sum(axis=1)
    assert counts.min() >= 34 and counts.max() <= 40 and abs(counts.mean() - 36.2) < 1.5
    searched = generate(replace(settings, deduction="search")).train
    assert rows(searched.puzzles).isdisjoint(rows(generate(settings).train.puzzles))


@pytest.mark.parametrize("count", [24, 40])
def test_a_fixed_number_of_givens(count):
    data = generate(replace(SMALL_9, train=4, test=0, givens=(count, count), mean_givens=count))
    assert ((data.train.puzzles > 0).sum(axis=1) == count).all() and len(data.test) == 0


def test_a_class_that_comes_twice_is_left_out(monkeypatch):
    """Every second grid is an image of one and the same: it is kept once."""
    board, calls = random_board(9, random.Random(0)), iter(range(1000))
    monkeypatch.setattr(
        generator,
        "random_board",
        lambda size, rng: random_board(size, rng) if next(calls) % 2 else [n % 9 + 1 for n in board],
    )
    data = generate(replace(SMALL_9, train=5, test=2, givens=(30, 40)))
    assert count_classes(np.concatenate([data.train.solutions, data.test.solutions])) == 7


def test_progress_counts_up_to_the_end():
    told = []
    generate(SMALL_4, progress=lambda made, wanted: told.append((made, wanted)))
    assert told[-1] == (240, 240) and told == sorted(told) and len(told) > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 6}, "size is 6, wanted 4 or 9"),
        ({"train": 0}, "train and test are 0 and 6, wanted 1 or more"),
        ({"test": -1}, "wanted 1 or more and 0 or more"),
        ({"givens": (20, 30)}, "givens are 20 to 30, wanted a range within 24 to 80"),
        ({"givens": (30, 25)}, "givens are 30 to 25"),
        ({"givens": (30, 35)}, r"the mean of givens is 36\.2, wanted one within 30 to 35"),
        ({"split": "grid"}, "split is 'grid', wanted 'class'"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL_9, **changes)


def test_too_few_puzzles(monkeypatch):
    """230 grids have 3680 puzzles with 15 givens."""
    monkeypatch.setattr(generator, "_DRAWS", 1)
    with pytest.raises(
        UserError, match=r"found \d+ different puzzles of size 4 with 15 to 15 givens, wanted"
    ):
        generate(replace(SIZE_4, train=4000, givens=(15, 15), mean_givens=15))


def test_no_process():
    with pytest.raises(UserError, match="processes is 0, wanted 1 or more"):
        generate(SMALL_4, processes=0)
