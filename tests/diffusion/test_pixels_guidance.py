import numpy as np
import pytest
import torch

from tenfold.diffusion.dit import DiT, DiTConfig
from tenfold.diffusion.edm import EDMConfig
from tenfold.diffusion.guidance import drop_captions, guided_denoiser
from tenfold.diffusion.pixels import PixelScaling


def test_pixels_are_centred_scaled_and_restored_exactly():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    images[..., 1] //= 2
    scaling = PixelScaling.fit(images)
    x = scaling.encode(images, sigma_data=0.5)
    assert x.shape == (6, 3, 8, 8)
    assert x.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert x.square().mean().sqrt().item() == pytest.approx(0.5, abs=1e-4)
    assert np.array_equal(scaling.decode(x, sigma_data=0.5), images)
    assert scaling.decode(x * 100, sigma_data=0.5).max() == 255  # clipped, not wrapped


def test_one_colour_has_no_scale_and_survives():
    images = np.full((2, 4, 4, 3), 77, np.uint8)
    scaling = PixelScaling.fit(images)
    assert np.array_equal(scaling.decode(scaling.encode(images, 0.5), 0.5), images)


def test_dropped_captions_become_one_token_of_zeros_and_others_stay():
    states, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]])
    new_states, new_mask = drop_captions(states, mask, torch.tensor([False, True]))
    assert torch.equal(new_states[0], states[0]) and torch.equal(new_mask[0], mask[0])
    assert new_states[1].abs().max() == 0
    assert new_mask[1].tolist() == [True, False, False]
    assert states[1].abs().max() > 0


def test_guidance_extrapolates_from_the_null_caption():
    torch.manual_seed(0)
    sizes = {"width": 32, "mixer_width": 32, "head_dim": 16, "depth": 1, "mixer_depth": 1, "text_width": 6}
    model = DiT(DiTConfig(image_size=8, patch_size=4, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    states, mask = torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)
    x, sigma = torch.randn(2, 4, 48), torch.tensor([0.7, 0.7])

    def at(guidance, s=states, m=mask):
        return guided_denoiser(model, EDMConfig(), s, m, guidance, bf16=False)(x, sigma)

    null = at(1.0, *drop_captions(states, mask, torch.tensor([True, True])))
    torch.testing.assert_close(at(0.0), null, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(at(3.0), null + 3.0 * (at(1.0) - null), atol=1e-4, rtol=1e-3)
