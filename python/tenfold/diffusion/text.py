"""Captions as token states of a pre-trained sentence encoder (all-MiniLM-L6-v2), in plain torch.

The encoder is BERT (Devlin et al., arXiv 1810.04805, section 3): 6 post-norm blocks, 12 heads, width 384.
States are returned raw, as the last LayerNorm leaves them.
"""

import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.data.cache import cache_folder, make_folder
from tenfold.data.fetch import CATALOG, fetch
from tenfold.engine.atomic import atomic_write

WIDTH = 384
HEADS = 12
DEPTH = 6
MAX_TOKENS = 64
_EPS = 1e-12  # LayerNorm's, config.json of the model
_BATCH = 64


@dataclass(frozen=True)
class TextStates:
    """Token states of N captions, padded with zeros to the longest of them."""

    states: Tensor  # (N, L, 384) float32
    mask: Tensor  # (N, L) bool, true where there is a token; [CLS] and [SEP] count as tokens
    truncated: tuple[int, ...] = ()  # rows whose caption had more than MAX_TOKENS tokens

    def __len__(self) -> int:
        return len(self.states)

    def pooled(self) -> Tensor:
        """(N, 384) masked mean of the token states, the model's own sentence vector before scaling."""
        return masked_mean(self.states, self.mask)


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of states (N, L, D) where mask (N, L) is true; (N, D), zero where no token is."""
    weights = mask.to(states.dtype)
    return torch.einsum("nld,nl->nd", states, weights) / weights.sum(1, keepdim=True).clamp(min=1)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH, eps=_EPS)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        q, k, v = self.qkv(x).view(count, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.out(mixed))
        y: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return y


class TextEncoder(nn.Module):
    """Frozen caption encoder: ``TextEncoder.load().encode(captions)``."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int = 30522, positions: int = 512) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.fingerprint = "untrained"
        self.words = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(positions, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=_EPS)
        self.blocks = nn.ModuleList([_Block() for _ in range(DEPTH)])

    @classmethod
    def load(cls) -> "TextEncoder":
        """The pre-trained encoder, in eval mode, fetched on first use.

        Errors: UserError from data.fetch when the weights are neither in the cache nor to be had.
        """
        folder = fetch("minilm")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        encoder = cls(tokenizer)
        encoder.load_state_dict(_own_names(load_file(folder / "model.safetensors")))
        encoder.fingerprint = CATALOG["minilm"].sha256
        return encoder.eval().requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        """Token states (N, L, 384) of token ids (N, L) without padding: all captions of one length."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x: Tensor = self.norm(self.words(ids) + self.positions(places))
        for block in self.blocks:
            x = block(x)
        return x

    def encode(self, captions: Sequence[str], cache: Path | None = None) -> TextStates:
        """States and mask of ``captions``, on the CPU; L is the longest caption's length, at most MAX_TOKENS.

        More than one batch of captions is encoded once and kept on disk, under the hash of the captions and
        the encoder, in ``cache`` (default: cache_folder()). A longer caption keeps its first 63 tokens and
        [SEP]; its row is in ``truncated`` and a warning says how many there are.
        """
        tokens, truncated = self._tokens(captions)
        if truncated:
            warnings.warn(
                f"{len(truncated)} of {len(captions)} captions were cut to {MAX_TOKENS} tokens; "
                f"the first is number {truncated[0]}: {captions[truncated[0]][:60]!r}...",
                stacklevel=2,
            )
        lengths = torch.tensor([len(row) for row in tokens], dtype=torch.int64)
        if len(tokens) <= _BATCH:
            flat = self._flat_states(tokens)
        else:
            path = (cache or cache_folder()) / "captions" / f"{self._key(tokens)}.safetensors"
            kept = _read_flat(path, int(lengths.sum()))
            flat = self._flat_states(tokens) if kept is None else kept
            if kept is None:
                make_folder(path.parent)
                with atomic_write(path, "wb") as sink:
                    sink.write(save({"states": flat}))
        mask = torch.arange(int(lengths.max()) if len(tokens) else 0) < lengths[:, None]
        states = torch.zeros(*mask.shape, WIDTH)
        states[mask] = flat
        return TextStates(states, mask, truncated)

    def _tokens(self, captions: Sequence[str]) -> tuple[list[list[int]], tuple[int, ...]]:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(captions))]
        truncated = tuple(row for row, ids in enumerate(rows) if len(ids) > MAX_TOKENS)
        for row in truncated:
            rows[row] = rows[row][: MAX_TOKENS - 1] + rows[row][-1:]
        return rows, truncated

    def _key(self, tokens: list[list[int]]) -> str:
        return hashlib.sha256(json.dumps([self.fingerprint, tokens]).encode()).hexdigest()[:32]

    @torch.no_grad()
    def _flat_states(self, tokens: list[list[int]]) -> Tensor:
        """(sum of lengths, 384): captions of equal length go together, so there is no padding to compute."""
        device = self.words.weight.device
        by_length: dict[int, list[int]] = defaultdict(list)
        for row, ids in enumerate(tokens):
            by_length[len(ids)].append(row)
        states: list[Tensor] = [torch.empty(0, WIDTH)] * len(tokens)
        for rows in by_length.values():
            for start in range(0, len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                found = self(torch.tensor([tokens[row] for row in batch], device=device)).float().cpu()
                for row, state in zip(batch, found, strict=True):
                    states[row] = state
        return torch.cat(states) if states else torch.empty(0, WIDTH)


def _read_flat(path: Path, rows: int) -> Tensor | None:
    """The cached states, or None when the file is absent, damaged or of another shape."""
    try:
        with safe_open(path, "pt") as file:
            flat: Tensor = file.get_tensor("states")
    except (OSError, SafetensorError):
        return None
    return flat if flat.shape == (rows, WIDTH) and flat.dtype == torch.float32 else None


def _own_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of TextEncoder from that of the model's file (BERT's customary names).

    The segment embedding of the first segment is added to every position; the pooler is not used.
    """
    own = {
        "words.weight": weights["embeddings.word_embeddings.weight"],
        "positions.weight": weights["embeddings.position_embeddings.weight"]
        + weights["embeddings.token_type_embeddings.weight"][0],
    }
    for kind in ("weight", "bias"):
        own[f"norm.{kind}"] = weights[f"embeddings.LayerNorm.{kind}"]
        for index in range(DEPTH):
            theirs, ours = f"encoder.layer.{index}", f"blocks.{index}"
            attention = [f"{theirs}.attention.self.{part}.{kind}" for part in ("query", "key", "value")]
            own[f"{ours}.qkv.{kind}"] = torch.cat([weights[name] for name in attention])
            for mine, name in (
                ("out", "attention.output.dense"),
                ("norm1", "attention.output.LayerNorm"),
                ("up", "intermediate.dense"),
                ("down", "output.dense"),
                ("norm2", "output.LayerNorm"),
            ):
                own[f"{ours}.{mine}.{kind}"] = weights[f"{theirs}.{name}.{kind}"]
    return own
