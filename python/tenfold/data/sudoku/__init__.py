"""Sudoku of size 9 and 4: puzzles with one solution, and their bits for SATNet."""

from tenfold.data.sudoku.board import is_valid, units
from tenfold.data.sudoku.classes import canonical, count_classes
from tenfold.data.sudoku.encode import bit_permutation, decode, is_input, one_hot
from tenfold.data.sudoku.generator import SIZE_4, SIZE_9, Sudoku, SudokuSettings, generate
from tenfold.data.sudoku.prepared import SudokuManifest, load, prepare, prepare_file
from tenfold.data.sudoku.reader import Puzzles, read_puzzles
from tenfold.data.sudoku.search import all_boards

__all__ = [
    "SIZE_4",
    "SIZE_9",
    "Puzzles",
    "Sudoku",
    "SudokuManifest",
    "SudokuSettings",
    "all_boards",
    "bit_permutation",
    "canonical",
    "count_classes",
    "decode",
    "generate",
    "is_input",
    "is_valid",
    "load",
    "one_hot",
    "prepare",
    "prepare_file",
    "read_puzzles",
    "units",
]
