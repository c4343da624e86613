import numpy as np
import pytest

from tenfold.data import retrieval

DRAW = np.random.default_rng(0)


def rows(count, width=12, shift=0.0):
    return (DRAW.normal(size=(count, width)) + shift).astype(np.float32)


def test_nearest_agrees_with_a_full_sort():
    samples, gallery = rows(7), rows(50)
    distances = np.linalg.norm(samples[:, None].astype(np.float64) - gallery[None], axis=2)
    assert (retrieval.nearest(samples, gallery, 5) == np.argsort(distances, axis=1)[:, :5]).all()
    assert retrieval.nearest(samples, gallery[:3], 5).shape == (7, 3)
    assert retrieval.nearest(samples[:0], gallery, 5).shape == (0, 5)


def test_ranks_and_share():
    gallery = np.arange(30, dtype=np.float32)[:, None]
    samples = np.array([[4.1], [9.4], [0.0]], np.float32)
    # 4.1 is nearest to 4; of 12 there are 7, 8, 9, 10 and 11 nearer to 9.4; 20 has 20 before it
    assert retrieval.own_ranks(samples, gallery, [4, 12, 20]).tolist() == [0, 5, 20]
    assert retrieval.own_image_share(samples, gallery, [4, 12, 20], k=5) == pytest.approx(1 / 3)
    assert retrieval.own_image_share(samples, gallery, [4, 12, 20], k=6) == pytest.approx(2 / 3)


def test_exact_copies_of_the_own_picture_do_not_count_against_a_sample():
    gallery = np.repeat(rows(1), 20, axis=0)
    sample = gallery[:1] + 0.5
    assert retrieval.own_ranks(sample, gallery, [19]).tolist() == [0]


def test_random_samples_score_chance():
    gallery = rows(200)
    share = retrieval.own_image_share(rows(2000), gallery, DRAW.integers(0, 200, 2000), k=10)
    assert retrieval.chance(200, 10) == 0.05
    assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2000)
    assert retrieval.chance(5, 10) == 1.0


def test_pixels_are_rows_in_levels():
    images = DRAW.integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    flat = retrieval.pixels(images)
    assert flat.shape == (2, 36) and flat.dtype == np.float32
    assert (flat[1].reshape(3, 4, 3) == images[1]).all()


def test_nearest_caption_uses_the_angle_and_respects_exclusion():
    candidates = np.array([[10, 0], [1, 1], [0, 0.1]], np.float32)
    queries = np.array([[1, 0.1], [0.1, 5], [1, 0.1]], np.float32)
    assert retrieval.nearest_caption(queries, candidates).tolist() == [0, 2, 0]
    assert retrieval.nearest_caption(queries, candidates, exclude=[0, 1, 1]).tolist() == [1, 2, 0]


def naive_mmd2(a, b):
    def kernel(u, v):
        return (float(u @ v) / len(u) + 1) ** 3

    n = len(a)
    within = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(n) for j in range(n) if i != j)
    return within / (n * (n - 1)) - 2 * sum(kernel(u, v) for u in a for v in b) / n**2


def test_kernel_distance_is_the_formula():
    a, b = rows(6).astype(np.float64), rows(6, shift=0.3).astype(np.float64)
    found = retrieval.kernel_distance(a, b, subsets=1, subset_size=6)
    assert found.mean == pytest.approx(naive_mmd2(a, b), rel=1e-9)
    assert found.spread == 0.0


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    same = retrieval.kernel_distance(rows(400), rows(400))
    shifted = retrieval.kernel_distance(rows(400), rows(400, shift=1.0))
    assert same.subset_size == 200 and same.subsets == 100
    assert abs(same.mean) < 3 * same.spread
    assert shifted.mean > 10 * same.spread
    # Averaged over many independent sets the estimate of equal distributions comes to zero, below its spread.
    many = [retrieval.kernel_distance(rows(20), rows(20), 1, 20).mean for _ in range(400)]
    assert abs(np.mean(many)) < 3 * np.std(many) / np.sqrt(400)


def test_kernel_distance_repeats_with_its_seed():
    a, b = rows(60), rows(60)
    one, two = (retrieval.kernel_distance(a, b, subsets=5, seed=3) for _ in range(2))
    assert one == two
    assert one != retrieval.kernel_distance(a, b, subsets=5, seed=4)


@pytest.mark.parametrize(
    ("x", "y", "size"),
    [
        (rows(5, 3), rows(5, 4), None),
        (rows(5), rows(5), 6),
        (rows(5), rows(5), 1),
        (rows(3), rows(3), None),
    ],
)
def test_kernel_distance_refuses(x, y, size):
    with pytest.raises(ValueError, match="wanted"):
        retrieval.kernel_distance(x, y, subset_size=size)
