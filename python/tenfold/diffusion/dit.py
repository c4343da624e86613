"""The diffusion transformer of MicroDiT: patch mixer, deferred masking, layer-wise scaling, adaLN.

Sehwag et al., "Stretching Each Dollar: Diffusion Training from Scratch on a Micro-Budget",
arXiv 2407.15811. Differences from it, all of them for small machines: caption tokens are packed and
padding is masked out of attention and pooling; widths are rounded to `multiple` instead of 256; attention
heads may be narrower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.engine.config import added
from tenfold.nn.attention import CrossAttention, SelfAttention
from tenfold.nn.embedding import noise_code, position_code
from tenfold.nn.ffn import MLP, SwiGLU
from tenfold.nn.moe import ExpertChoiceFFN
from tenfold.nn.packing import PackedTokens
from tenfold.ops.adaln import adaln, gated_residual, gated_residual_adaln
from tenfold.ops.patches import gather_patches

NOISE_CODE_WIDTH = 512
NORM_EPS = 1e-6
INIT_STD = 0.02
MIXER_RATIO = 4.0  # hidden width of the mixer's feed-forward layers, relative to its own


@dataclass(frozen=True)
class DiTConfig:
    """Shape of the transformer."""

    image_size: int = 32
    """Height and width of the images in pixels."""
    channels: int = 3
    """Channels of the images."""
    patch_size: int = 8
    """Height and width of a patch in pixels."""
    width: int = 384
    """Width of the backbone."""
    depth: int = 3
    """Blocks of the backbone."""
    head_dim: int = 64
    """Width of an attention head."""
    mixer_width: int = 384
    """Width of the patch mixer."""
    mixer_depth: int = 1
    """Blocks of the patch mixer, which sees every patch; masking comes after it."""
    text_width: int = 384
    """Width of the caption states."""
    qkv_ratios: tuple[float, float] = (0.5, 1.0)
    """Width of queries, keys and values relative to `width`, in the first and the last backbone block."""
    ffn_ratios: tuple[float, float] = (0.5, 4.0)
    """Hidden width of the feed-forward layer relative to `width`, in the first and the last block."""
    multiple: int = 64
    """Hidden widths are rounded up to a multiple of this."""
    experts: int = added(0)
    """Experts in the feed-forward layer of every second block (but the last); 0 makes all layers dense."""
    capacity: float = added(2.0)
    """Experts that take a token on average."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit together."""
        for name in (
            "image_size", "channels", "patch_size", "width", "depth", "head_dim", "mixer_width", "text_width",
            "multiple",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, got {getattr(self, name)}")
        for name in ("mixer_depth", "experts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: wanted at least 0, got {getattr(self, name)}")
        if self.capacity <= 0 or 0 < self.experts < self.capacity:
            raise ValueError(
                f"capacity: wanted more than 0, up to the number of experts, got {self.capacity}"
            )
        for name in ("qkv_ratios", "ffn_ratios"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name}: wanted positive numbers, got {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size: {self.patch_size} does not divide image_size {self.image_size}")
        if self.width % 4:
            raise ValueError(f"width: {self.width} is not a multiple of 4, which the position code wants")
        for name in ("width", "mixer_width"):
            if getattr(self, name) % self.head_dim:
                raise ValueError(
                    f"{name}: {getattr(self, name)} is not a multiple of head_dim {self.head_dim}"
                )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return self.grid**2


def kept_tokens(tokens: int, mask_ratio: float) -> int:
    """Return how many of `tokens` patches a mask ratio keeps: rounded, at least one."""
    if not 0.0 <= mask_ratio < 1.0:
        raise ValueError(f"mask_ratio: wanted 0 <= ratio < 1, got {mask_ratio}")
    return max(1, round(tokens * (1.0 - mask_ratio)))


def patchify(images: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) -> (N, (H/p)(W/p), p*p*C), patches in row-major order."""
    n, c, h, w = images.shape
    x = images.reshape(n, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Inverse of `patchify`: (N, (H/p)(W/p), p*p*C) -> (N, C, H, W)."""
    n = tokens.shape[0]
    x = tokens.reshape(n, height // patch, width // patch, patch, patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(n, -1, height, width)


def _round_up(value: float, multiple: int) -> int:
    return max(multiple, math.ceil(int(value) / multiple) * multiple)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=NORM_EPS, bias=False)


def _change_width(inputs: int, outputs: int) -> nn.Module:
    return nn.Identity() if inputs == outputs else nn.Sequential(_norm(inputs), nn.Linear(inputs, outputs))


class Block(nn.Module):
    """x += g1 SelfAttn(mod1(x)); x += CrossAttn(LN x, y); x += g2 FFN(mod2(x)).

    Shifts, scales and gates come from the conditioning vector c. Their layer starts at zero, so a new
    block is its cross-attention alone.
    """

    def __init__(self, width: int, cond: int, inner: int, ffn: nn.Module, head_dim: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(cond, 6 * width)
        self.attn_norm, self.cross_norm, self.ffn_norm = _norm(width), _norm(width), _norm(width)
        self.attn = SelfAttention(width, inner, head_dim)
        self.cross = CrossAttention(width, head_dim)
        self.ffn = ffn

    def forward(self, x: Tensor, c: Tensor, y: Tensor, packing: PackedTokens) -> Tensor:
        """Map x (N, T, width) given c (N, cond) after its GELU and caption tokens y (M, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        h = adaln(x, shift1, scale1, weight=self.attn_norm.weight, eps=NORM_EPS)
        x, h = gated_residual_adaln(x, self.attn(h), gate1, weight=self.cross_norm.weight, eps=NORM_EPS)
        x, h = gated_residual_adaln(
            x, self.cross(h, y, packing), None, shift2, scale2, weight=self.ffn_norm.weight, eps=NORM_EPS
        )
        out: Tensor = gated_residual(x, self.ffn(h), gate2)
        return out

    def init_weights(self, out_std: float) -> None:
        """Truncated normal everywhere, `out_std` where a residual branch ends, zero modulation."""
        inner = [self.attn.qkv.weight, self.cross.query.weight, self.cross.key_value.weight]
        outer = [self.attn.out.weight, self.cross.out.weight]
        if isinstance(self.ffn, ExpertChoiceFFN):
            inner += [self.ffn.router.weight, self.ffn.w_in]
            outer.append(self.ffn.w_out)
        elif isinstance(self.ffn, SwiGLU):
            inner.append(self.ffn.gate_up.weight)
            outer.append(self.ffn.down.weight)
        for weight in inner:
            nn.init.trunc_normal_(weight, std=INIT_STD)
        for weight in outer:
            nn.init.trunc_normal_(weight, std=out_std)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)


def backbone_ratios(config: DiTConfig) -> list[tuple[int, float]]:
    """Return (attention width, feed-forward ratio) of each backbone block: layer-wise scaling.

    Both grow linearly from the first block to the last.
    """
    qkv = np.linspace(*config.qkv_ratios, config.depth)
    ffn = np.linspace(*config.ffn_ratios, config.depth)
    return [(_round_up(config.width * q, config.head_dim), float(f)) for q, f in zip(qkv, ffn, strict=True)]


def _ffn(config: DiTConfig, width: int, ratio: float, index: int, last: bool = False) -> nn.Module:
    """The feed-forward layer of a block: experts in every second one, but never in the last of the backbone.

    SwiGLU's hidden width is two thirds of a plain layer's, for it has three matrices.
    """
    if config.experts and index % 2 == 1 and not last:
        hidden = _round_up(width * ratio, config.multiple)
        return ExpertChoiceFFN(width, hidden, config.experts, config.capacity)
    return SwiGLU(width, _round_up(width * ratio * 2 / 3, config.multiple))


class CaptionEmbedding(nn.Module):
    """Caption states to backbone width: MLP, one pre-norm transformer block, and a pooled vector."""

    def __init__(self, text_width: int, width: int, head_dim: int, multiple: int) -> None:
        super().__init__()
        self.mlp = MLP(text_width, width, width, norm=True)
        self.attn_norm, self.ffn_norm = _norm(width), _norm(width)
        self.attn = SelfAttention(width, width, head_dim)
        self.ffn = SwiGLU(width, _round_up(4 * width * 2 / 3, multiple))
        self.pooled = MLP(text_width, width, width, norm=True)

    def forward(self, states: Tensor, packing: PackedTokens) -> tuple[Tensor, Tensor]:
        """Map packed states (M, text_width) to tokens (M, width) and pooled captions (N, width)."""
        y = self.mlp(states)
        h = adaln(y, weight=self.attn_norm.weight, eps=NORM_EPS)
        y, h = gated_residual_adaln(
            y, self.attn.forward_packed(h, packing), weight=self.ffn_norm.weight, eps=NORM_EPS
        )
        y = y + self.ffn(h)
        return y, self.pooled(packing.mean(states))

    def init_weights(self) -> None:
        """Start the block as the identity."""
        for mlp in (self.mlp, self.pooled):
            nn.init.normal_(mlp.up.weight, std=INIT_STD)
            nn.init.normal_(mlp.down.weight, std=INIT_STD)
        nn.init.zeros_(self.attn.out.weight)
        nn.init.zeros_(self.ffn.down.weight)


def _blocks(modules: nn.ModuleList) -> list[Block]:
    """The members of a ModuleList, which torch types as plain modules."""
    return cast(list[Block], list(modules))


class DiT(nn.Module):
    """F(x, c_noise, caption): the raw network inside the EDM preconditioning."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, mixer, multiple = config.width, config.mixer_width, config.multiple
        patch_values = config.patch_size**2 * config.channels
        self.patch_embed = nn.Linear(patch_values, width)
        self.positions: Tensor
        self.register_buffer("positions", position_code(config.grid, config.grid, width), persistent=False)
        self.noise_embed = MLP(NOISE_CODE_WIDTH, width, width)
        self.captions = CaptionEmbedding(config.text_width, width, config.head_dim, multiple)
        self.to_mixer = _change_width(width, mixer)
        self.captions_to_mixer = _change_width(width, mixer)
        self.from_mixer = _change_width(mixer, width)
        self.mixer = nn.ModuleList(
            Block(mixer, width, mixer, _ffn(config, mixer, MIXER_RATIO, i), config.head_dim)
            for i in range(config.mixer_depth)
        )
        self.backbone = nn.ModuleList(
            Block(width, width, inner, _ffn(config, width, ratio, i, i == config.depth - 1), config.head_dim)
            for i, (inner, ratio) in enumerate(backbone_ratios(config))
        )
        self.final_norm = _norm(width)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, patch_values)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.noise_embed.up, self.noise_embed.down):
            nn.init.normal_(layer.weight, std=INIT_STD)
        self.captions.init_weights()
        mixer, backbone = _blocks(self.mixer), _blocks(self.backbone)
        for block in mixer:
            block.init_weights(INIT_STD / math.sqrt(2 * self.config.depth))
        for index, block in enumerate(backbone):
            block.init_weights(INIT_STD / math.sqrt(2 * (index + 1)))
        for layer in (self.final_modulation, self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, patches: Tensor, c_noise: Tensor, states: Tensor, mask: Tensor, keep_ids: Tensor | None = None
    ) -> Tensor:
        """Return F for every patch, or for the kept ones only.

        Shapes: patches (N, T, p*p*C) as `patchify` gives them, c_noise (N,), states (N, L, text_width),
        mask (N, L) boolean with at least one True a row, keep_ids (N, K) -> (N, T or K, p*p*C).
        """
        packing = PackedTokens.from_mask(mask)
        y, pooled = self.captions(packing.pack(states), packing)
        c = F.gelu(self.noise_embed(noise_code(c_noise, NOISE_CODE_WIDTH)) + pooled, approximate="tanh")
        x = self.patch_embed(patches) + self.positions
        x = self._mix(x, c, y, packing)
        if keep_ids is not None:
            x = gather_patches(x, keep_ids)
        for block in self.backbone:
            x = block(x, c, y, packing)
        shift, scale = self.final_modulation(c).chunk(2, dim=-1)
        out: Tensor = self.final(adaln(x, shift, scale, weight=self.final_norm.weight, eps=NORM_EPS))
        return out

    def _mix(self, x: Tensor, c: Tensor, y: Tensor, packing: PackedTokens) -> Tensor:
        if not self.mixer:
            return x
        x, y = self.to_mixer(x), self.captions_to_mixer(y)
        for block in self.mixer:
            x = block(x, c, y, packing)
        out: Tensor = self.from_mixer(x)
        return out
