import math

import pytest
import torch

from tenfold.nn.embedding import noise_code, position_code


def test_position_code_separates_columns_and_rows():
    code = position_code(3, 5, 16)
    assert code.shape == (15, 16)
    grid = code.reshape(3, 5, 16)
    assert torch.equal(grid[0, :, :8], grid[2, :, :8])  # the first half codes the column
    assert torch.equal(grid[:, 0, 8:], grid[:, 4, 8:])  # the second half the row
    assert len({tuple(row.tolist()) for row in code}) == 15
    assert grid[0, 3, 0].item() == pytest.approx(math.sin(3))
    assert grid[0, 3, 4].item() == pytest.approx(math.cos(3))


def test_position_code_wants_a_multiple_of_four():
    with pytest.raises(ValueError, match=r"width.*18"):
        position_code(2, 2, 18)


def test_noise_code_has_cosines_first_at_falling_frequencies():
    code = noise_code(torch.tensor([0.5]), 8)[0]
    frequencies = [10_000 ** (-j / 4) for j in range(4)]
    assert code[:4].tolist() == pytest.approx([math.cos(0.5 * f) for f in frequencies], rel=1e-5)
    assert code[4:].tolist() == pytest.approx([math.sin(0.5 * f) for f in frequencies], rel=1e-5)
