import pytest
import torch

from tenfold.diffusion.edm import EDMConfig, column, training_target, weighted_loss
from tenfold.diffusion.samplers import heun, karras_sigmas


@pytest.mark.parametrize("prediction", ["edm", "clean"])
def test_the_loss_on_the_raw_output_is_the_weighted_loss_on_the_denoiser(prediction):
    torch.manual_seed(0)
    noise = EDMConfig(sigma_data=0.7, prediction=prediction, weight_cap=1e9)
    sigma = torch.tensor([0.05, 1.0, 20.0], dtype=torch.float64)
    clean = torch.randn(3, 4, dtype=torch.float64)
    noisy = clean + column(sigma, clean) * torch.randn_like(clean)
    raw = torch.randn_like(clean)
    scale = noise.scalings(sigma)
    denoised = column(scale.skip, clean) * noisy + column(scale.out, clean) * raw
    weight = (sigma**2 + 0.7**2) / (sigma * 0.7) ** 2
    weighted = weight[:, None] * (denoised - clean) ** 2
    torch.testing.assert_close(
        weighted_loss(raw, training_target(clean, noisy, scale), scale), weighted.mean()
    )


def test_a_perfect_network_predicts_the_clean_image_and_low_noise_is_capped():
    noise = EDMConfig(sigma_data=0.5, prediction="clean", weight_cap=3.0)
    sigma = torch.tensor([0.01, 0.5, 50.0])
    clean = torch.randn(3, 4)
    scale = noise.scalings(sigma)
    noisy = clean + column(sigma, clean) * torch.randn_like(clean)
    target = training_target(clean, noisy, scale)
    torch.testing.assert_close(target, clean / 0.5)
    torch.testing.assert_close(column(scale.out, clean) * target + column(scale.skip, clean) * noisy, clean)
    assert scale.weight.tolist() == pytest.approx([3.0, 2.0, 1.0], rel=1e-3)


def test_inputs_and_targets_have_unit_variance_at_every_noise_level():
    noise = EDMConfig(sigma_data=0.5, prediction="edm")
    draws = torch.Generator().manual_seed(0)
    for level in (0.02, 0.5, 30.0):
        sigma = torch.full((20_000,), level)
        clean = 0.5 * torch.randn(20_000, generator=draws)
        noisy = clean + sigma * torch.randn(20_000, generator=draws)
        scale = noise.scalings(sigma)
        assert (scale.input * noisy).std().item() == pytest.approx(1.0, abs=0.03)
        assert training_target(clean, noisy, scale).std().item() == pytest.approx(1.0, abs=0.03)


def test_training_sigmas_are_log_normal_and_a_function_of_the_generator():
    noise = EDMConfig(p_mean=0.3, p_std=0.8)
    a = noise.training_sigmas(50_000, torch.Generator().manual_seed(1))
    assert a.log().mean().item() == pytest.approx(0.3, abs=0.02)
    assert a.log().std().item() == pytest.approx(0.8, abs=0.02)
    assert torch.equal(a, noise.training_sigmas(50_000, torch.Generator().manual_seed(1)))


def test_karras_sigmas_follow_the_published_formula():
    sigmas = karras_sigmas(5, 0.002, 80.0)
    assert sigmas[0].item() == pytest.approx(80.0) and sigmas[4].item() == pytest.approx(0.002)
    assert sigmas[5] == 0
    middle = (80 ** (1 / 7) + 0.5 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas[2].item() == pytest.approx(middle)
    with pytest.raises(ValueError, match="steps"):
        karras_sigmas(0, 0.002, 80.0)
    with pytest.raises(ValueError, match="sigma_min"):
        karras_sigmas(5, 1.0, 0.5)


def test_heun_is_second_order_on_gaussian_data():
    """For data N(0, 0.25) the exact flow is known: x scales with sqrt(sigma^2 + 0.25)."""
    spread = 0.5

    def denoise(x, sigma):
        return x * spread**2 / (spread**2 + column(sigma, x) ** 2)

    start = torch.ones(1, 1, dtype=torch.float32)
    exact = 40.0 * spread / (40.0**2 + spread**2) ** 0.5
    errors = [abs(heun(denoise, start, karras_sigmas(n, 0.002, 40.0)).item() - exact) for n in (10, 20, 40)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[0] / errors[2] > 8  # second order would give 16, first order 4


@pytest.mark.parametrize(("field", "value"), [("sigma_data", 0.0), ("p_std", -1.0)])
def test_widths_must_be_positive(field, value):
    with pytest.raises(ValueError, match=field):
        EDMConfig(**{field: value})
