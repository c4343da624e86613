import numpy as np
import pytest

from tenfold.data import splits


def thumbnails(rows):
    """One flat grey picture per level."""
    pictures = np.empty((len(rows), splits.TWIN_SIZE, splits.TWIN_SIZE, 3), np.uint8)
    pictures[:] = np.array(rows, np.uint8)[:, None, None, None]
    return pictures


def test_near_twins_join_transitively_and_strictly_below_the_limit():
    # 15 levels apart are twins, 16 are not; 0-15-30 join through the middle.
    groups = splits.group(thumbnails([0, 15, 30, 46, 200, 216]))
    assert groups.tolist() == [0, 0, 0, 1, 2, 3]


def test_groups_are_numbered_by_first_appearance():
    assert splits.group(thumbnails([200, 0, 201, 100, 1])).tolist() == [0, 1, 0, 2, 1]


def test_keys_join_pictures_that_look_different():
    levels = [0, 50, 100, 150, 200]
    assert splits.group(thumbnails(levels), keys=["abcad", "vwxyy"]).tolist() == [0, 1, 2, 0, 0]


def test_blocks_do_not_hide_twins(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    noise[37] = noise[2]
    noise[11] = noise[10]
    whole = splits.group(noise)
    monkeypatch.setattr(splits, "_BLOCK", 3)
    assert splits.group(noise).tolist() == whole.tolist()
    assert whole[37] == whole[2] and whole[11] == whole[10] and len(set(whole.tolist())) == 38


def test_many_equal_pictures_are_one_group():
    assert set(splits.group(thumbnails([255] * 2000)).tolist()) == {0}


def test_no_pictures():
    assert len(splits.group(thumbnails([]))) == 0
    train, heldout = splits.split(np.array([], np.int64), [])
    assert len(train) == len(heldout) == 0


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_groups_whole_and_covers_everything(seed):
    draw = np.random.default_rng(seed)
    groups = draw.integers(0, 120, 300)
    names = [f"{i:03}.png" for i in draw.permutation(300)]
    train, heldout = splits.split(groups, names)
    assert sorted([*train, *heldout]) == list(range(300))
    assert not set(groups[train]) & set(groups[heldout])
    assert 13 <= len(heldout) <= 15  # 5 % of 300, less what no whole group could fill


def test_split_follows_the_names_and_not_the_order():
    names = [f"{i}.png" for i in range(100)]
    groups = np.arange(100) // 2
    _, heldout = splits.split(groups, names)
    order = np.random.default_rng(1).permutation(100)
    _, again = splits.split(groups[order], [names[i] for i in order])
    assert {names[i] for i in heldout} == {names[order[i]] for i in again}
    assert len(heldout) > 0


def test_one_group_is_never_held_out():
    train, heldout = splits.split(np.zeros(50, np.int64), [str(i) for i in range(50)])
    assert len(train) == 50 and len(heldout) == 0
