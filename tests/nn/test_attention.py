import torch

from tenfold.nn.attention import QK_NORM_EPS, CrossAttention, SelfAttention, torch_attention
from tenfold.nn.packing import PackedTokens
from tenfold.ops.attention import attention


def lengths_mask(*lengths):
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def test_torchs_kernel_does_the_same():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, t, 3, 8, requires_grad=True) for t in (5, 7, 7))
    mask = lengths_mask(7, 4)
    ours = attention(q, k, v, key_mask=mask, qk_norm_eps=QK_NORM_EPS)
    theirs = torch_attention(q, k, v, mask[:, None, None])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    weight = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((theirs * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_packing_is_the_padded_batch_without_its_padding():
    mask = lengths_mask(3, 1, 4)
    x = torch.randn(3, 4, 5)
    packing = PackedTokens.from_mask(mask)
    packed = packing.pack(x)
    assert torch.equal(packed, x[mask])
    assert torch.equal(packing.pad(packed)[mask], x[mask])
    assert packing.offsets.tolist() == [0, 3, 4, 8] and packing.offsets.dtype == torch.int32
    torch.testing.assert_close(packing.mean(packed)[0], x[0, :3].mean(0))
    torch.testing.assert_close(packing.mean(packed)[1], x[1, 0])


def test_packed_self_attention_is_attention_within_each_sequence():
    torch.manual_seed(1)
    layer = SelfAttention(16, 16, 8)
    x = torch.randn(2, 4, 16)
    packing = PackedTokens.from_mask(lengths_mask(4, 2))
    packed = layer.forward_packed(packing.pack(x), packing)
    torch.testing.assert_close(packed[:4], layer(x[:1])[0])
    torch.testing.assert_close(packed[4:], layer(x[1:, :2])[0])


def test_cross_attention_ignores_padding():
    torch.manual_seed(2)
    layer = CrossAttention(16, 8)
    x, y = torch.randn(2, 6, 16), torch.randn(2, 5, 16)
    short = lengths_mask(5, 2)
    packing = PackedTokens.from_mask(short)
    out = layer(x, packing.pack(y), packing)
    y[1, 2:] = 1e6
    assert torch.equal(out, layer(x, packing.pack(y), packing))
    alone = PackedTokens.from_mask(torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(out[1:], layer(x[1:], y[1, :2], alone))


def test_queries_and_keys_are_normalised_so_their_scale_does_not_matter():
    torch.manual_seed(3)
    layer = SelfAttention(16, 16, 8)
    x = torch.randn(1, 4, 16)
    before = layer(x)
    with torch.no_grad():
        layer.qkv.weight[:32] *= 100.0  # queries and keys, not values
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=1e-4)
