from dataclasses import replace

import pytest
import torch

from tenfold.diffusion.dit import DiT, DiTConfig, backbone_ratios, kept_tokens, patchify, unpatchify
from tenfold.nn.moe import ExpertChoiceFFN

SMALL = DiTConfig(
    image_size=16, patch_size=4, width=32, mixer_width=32, head_dim=16, depth=3, mixer_depth=1, text_width=12
)


def trained(config=SMALL):
    """A network whose zero-initialised layers are not zero, so that every path matters."""
    torch.manual_seed(0)
    model = DiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def inputs(model, count=2, length=5):
    config = model.config
    patches = torch.randn(count, config.tokens, config.patch_size**2 * config.channels)
    mask = torch.ones(count, length, dtype=torch.bool)
    mask[1:, 2:] = False
    return patches, torch.randn(count), torch.randn(count, length, config.text_width), mask


def test_patchify_is_undone_and_keeps_patches_together():
    images = torch.randn(2, 3, 8, 12)
    tokens = patchify(images, 4)
    assert tokens.shape == (2, 6, 48)
    assert torch.equal(tokens[1, 4].reshape(4, 4, 3).permute(2, 0, 1), images[1, :, 4:8, 4:8])
    assert torch.equal(unpatchify(tokens, 4, 8, 12), images)


def test_a_new_network_predicts_zero():
    model = DiT(SMALL)
    assert model(*inputs(model)).abs().max() == 0


def test_kept_patches_after_an_unmasked_mixer_depend_on_each_other_only():
    model = trained()
    patches, noise, states, mask = inputs(model)
    keep = torch.tensor([[3, 0, 7, 12], [15, 2, 4, 9]])
    full = model(patches, noise, states, mask, torch.arange(16).expand(2, 16))
    torch.testing.assert_close(full, model(patches, noise, states, mask))
    masked = model(patches, noise, states, mask, keep)
    assert masked.shape == (2, 4, 48)
    # The order of the kept ids is the order of the results.
    turned = model(patches, noise, states, mask, keep.flip(1))
    torch.testing.assert_close(turned, masked.flip(1), atol=1e-5, rtol=1e-4)
    # A dropped patch still speaks through the mixer, which is the point of deferring the mask.
    patches[0, 1] += 1.0
    assert not torch.allclose(model(patches, noise, states, mask, keep)[0], masked[0], atol=1e-4)


def test_without_a_mixer_a_dropped_patch_is_unseen():
    config = DiTConfig(
        image_size=16,
        patch_size=4,
        width=32,
        mixer_width=32,
        head_dim=16,
        depth=2,
        mixer_depth=0,
        text_width=12,
    )
    model = trained(config)
    patches, noise, states, mask = inputs(model)
    keep = torch.tensor([[3, 0, 7, 12], [15, 2, 4, 9]])
    before = model(patches, noise, states, mask, keep)
    patches[0, 1] += 1.0
    assert torch.equal(model(patches, noise, states, mask, keep), before)


def test_padding_of_captions_changes_nothing():
    model = trained()
    patches, noise, states, mask = inputs(model)
    before = model(patches, noise, states, mask)
    states[1, 2:] = 1e6
    assert torch.equal(model(patches, noise, states, mask), before)
    alone = model(patches[1:], noise[1:], states[1:, :2], mask[1:, :2])
    torch.testing.assert_close(alone, before[1:], atol=1e-5, rtol=1e-4)


def test_caption_noise_level_and_position_all_matter():
    model = trained()
    patches, noise, states, mask = inputs(model)
    before = model(patches, noise, states, mask)
    assert not torch.allclose(model(patches, noise + 1.0, states, mask), before, atol=1e-4)
    assert not torch.allclose(model(patches, noise, states + 1.0, mask), before, atol=1e-4)
    same = patches[:, :1].expand_as(patches)
    out = model(same, noise, states, mask)
    assert not torch.allclose(out[:, 0], out[:, 1], atol=1e-4)


def test_every_parameter_gets_a_gradient():
    model = trained(replace(SMALL, mixer_width=48, depth=2, mixer_depth=2))
    patches, noise, states, mask = inputs(model)
    model(patches, noise, states, mask, torch.tensor([[1, 2], [5, 0]])).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


def test_layer_wise_scaling_grows_from_first_to_last():
    config = DiTConfig(width=256, depth=4)
    widths = [inner for inner, _ in backbone_ratios(config)]
    assert widths[0] == 128 and widths[-1] == 256 and widths == sorted(widths)
    hidden = [block.ffn.down.in_features for block in DiT(config).backbone]
    assert hidden[0] == 128 and hidden[-1] == 704 and hidden == sorted(hidden)


def test_experts_stand_in_every_second_block_but_the_last():
    config = replace(SMALL, depth=4, mixer_depth=2, experts=3, multiple=16)
    model = trained(config)
    for blocks, wanted in ((model.mixer, [False, True]), (model.backbone, [False, True, False, False])):
        assert [isinstance(block.ffn, ExpertChoiceFFN) for block in blocks] == wanted
    assert model.backbone[1].ffn.w_in.shape == (3, 32, 64)  # ratios 0.5 to 4: 32 (0.5 + 3.5 / 3), rounded up
    patches, noise, states, mask = inputs(model)
    model(patches, noise, states, mask, torch.tensor([[1, 2, 9], [5, 0, 3]])).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


@pytest.mark.parametrize(("tokens", "ratio", "kept"), [(64, 0.75, 16), (10, 0.9, 1), (4, 0.99, 1)])
def test_kept_tokens_are_rounded_and_never_none(tokens, ratio, kept):
    assert kept_tokens(tokens, ratio) == kept


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="patch_size: 5 does not divide"):
        DiTConfig(patch_size=5)
    with pytest.raises(ValueError, match="width: 100 is not a multiple of head_dim"):
        DiTConfig(width=100)
    with pytest.raises(ValueError, match="experts: wanted at least 0, got -1"):
        DiTConfig(experts=-1)
    with pytest.raises(ValueError, match="capacity: wanted more than 0, up to the number of experts, got 5"):
        DiTConfig(experts=4, capacity=5.0)
    with pytest.raises(ValueError, match="mask_ratio"):
        kept_tokens(64, 1.0)
