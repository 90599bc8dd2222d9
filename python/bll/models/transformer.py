"""Transformers on sequences of symbols: an encoder, and a small decoder of the GPT kind.

Both are pre-norm (Xiong et al. 2020) with learned positions and one output per position. Their
layers stand in ``layers``; each is a place to cut, since one tensor carries everything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bll.balance import balanced_ends
from bll.models.network import Network


class TransformerLayer(nn.Module):
    """``h = x + attention(norm(x))``, then ``h + mlp(norm(h))``.

    Args:
        width: Units of a position.
        heads: Attention heads.
        hidden: Units inside the two-layer perceptron.
        causal: Whether a position sees only itself and those before it.
    """

    def __init__(self, width: int, heads: int, hidden: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, T, width]`` to the same shape."""
        x = x + self._attention(self.norm_attention(x))
        mixed: Tensor = self.mlp(self.norm_mlp(x))
        return x + mixed

    def _attention(self, x: Tensor) -> Tensor:
        batch, positions, width = x.shape
        # [B, T, 3 * width] -> three times [B, heads, T, width / heads]
        parts = self.queries_keys_values(x).view(batch, positions, 3, self.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        out: Tensor = self.mix(seen.transpose(1, 2).reshape(batch, positions, width))
        return out


class SequenceTransformer(nn.Module):
    """Symbols in, one row of logits per position out.

    Args:
        symbols: Number of input symbols.
        num_classes: Number of logits.
        positions: Longest sequence.
        depth: Layers.
        width: Units of a position; a multiple of ``heads``.
        heads: Attention heads.
        hidden: Units inside a layer's perceptron; None: four times the width.
        causal: Whether a position sees only itself and those before it.

    Raises:
        ValueError: A number is below 1, or ``heads`` does not divide ``width``.
    """

    def __init__(
        self,
        symbols: int,
        num_classes: int,
        positions: int,
        *,
        depth: int,
        width: int,
        heads: int,
        hidden: int | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        numbers = {
            "symbols": symbols, "num_classes": num_classes, "positions": positions,
            "depth": depth, "width": width, "heads": heads, "hidden": hidden,
        }  # fmt: skip
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.symbols = nn.Embedding(symbols, width)
        self.positions = nn.Embedding(positions, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, hidden, causal) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, symbols: Tensor) -> Tensor:
        """Map symbols ``[B, T]``, int64, to logits ``[B, T, num_classes]``."""
        places = torch.arange(symbols.shape[1], device=symbols.device)
        x = self.symbols(symbols) + self.positions(places)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def _cut(model: SequenceTransformer, blocks: int) -> Network:
    depth = len(model.layers)
    if not 1 <= blocks <= depth:
        raise ValueError(f"blocks: expected 1 to {depth} (the layers), got {blocks}")
    ends = balanced_ends([1] * depth, blocks)
    return Network(model, tuple(f"layers.{end}" for end in ends))


def reversal_encoder(
    symbols: int = 10,
    *,
    depth: int = 20,
    width: int = 64,
    heads: int = 1,
    hidden: int = 256,
    blocks: int | None = None,
) -> Network:
    """Encoder that writes a permutation of ``symbols`` symbols in reverse order.

    Kappel et al. (arXiv 2305.14974) use 20 layers of one head with a local loss after each; width,
    hidden units and positions are choices of this package.

    Args:
        symbols: Symbols of the alphabet, and length of a sequence.
        depth: Layers.
        width: Units of a position.
        heads: Attention heads.
        hidden: Units inside a layer's perceptron.
        blocks: Number of blocks, equal shares of the layers; None: one per layer.

    Raises:
        ValueError: A number is out of its range.
    """
    model = SequenceTransformer(
        symbols, symbols, symbols, depth=depth, width=width, heads=heads, hidden=hidden
    )
    return _cut(model, depth if blocks is None else blocks)


def gpt(
    vocabulary: int,
    *,
    positions: int = 128,
    depth: int = 4,
    width: int = 128,
    heads: int = 4,
    blocks: int | None = None,
) -> Network:
    """Causal decoder: logits of the next symbol at every position.

    Args:
        vocabulary: Number of symbols.
        positions: Longest sequence.
        depth: Layers.
        width: Units of a position.
        heads: Attention heads.
        blocks: Number of blocks, equal shares of the layers; None: one per layer.

    Raises:
        ValueError: A number is out of its range.
    """
    model = SequenceTransformer(
        vocabulary, vocabulary, positions, depth=depth, width=width, heads=heads, causal=True
    )
    return _cut(model, depth if blocks is None else blocks)
