"""Fixtures of all tests."""

import pytest

from tenfold.errors import UserError


@pytest.fixture(scope="session")
def text_encoder():
    """The pre-trained caption encoder; skipped where it is neither in the cache nor to be fetched."""
    pytest.importorskip("torch")
    from tenfold.diffusion.text import TextEncoder

    try:
        return TextEncoder.load()
    except UserError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(f"the caption encoder cannot be had here: {error}")
