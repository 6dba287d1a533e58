"""Attention with one plain linear layer each for queries, keys, values and outputs, so that each is a weight of its own.

The head width is whatever the projections give, while the softmax keeps the scale it was made with: heads can become
narrower, for queries and keys to one width and for values to another. This module loads torch: imported only inside functions.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class PlainAttention(nn.Module):
    """(N, T, width) -> same, T tokens. In training ``dropout`` of the attention weights, ``output_dropout`` of the output."""

    def __init__(
        self,
        q: nn.Linear,
        k: nn.Linear,
        v: nn.Linear,
        o: nn.Linear,
        *,
        heads: int,
        scale: float,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = q, k, v, o
        self.output_dropout = nn.Dropout(output_dropout)
        self.heads = heads
        self.scale = scale
        self.dropout = dropout

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        output: Tensor = self.output_dropout(self.o(mixed.transpose(1, 2).flatten(2)))
        return output


class PlainTimmAttention(PlainAttention):
    """In place of timm's ``Attention``."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Raises ``ValueError`` for masks."""
        _refuse_masks(attn_mask, is_causal)
        return self.attend(x)


class PlainMultiheadAttention(PlainAttention):
    """In place of ``nn.MultiheadAttention`` where it is called for self-attention and without asking for its weights."""

    in_proj_bias = None  # torch's encoder layers take the fused way, around this module, only where there is one
    batch_first = True

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Raises ``ValueError`` for masks, for tokens that differ, and when asked for the attention weights."""
        _refuse_masks(attn_mask, is_causal)
        if key_padding_mask is not None or need_weights or key is not query or value is not query:
            raise ValueError("made for self-attention without padding that does not return its weights")
        output = self.attend(query if self.batch_first else query.transpose(0, 1))
        return (output if self.batch_first else output.transpose(0, 1)), None


def _refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("made for attention without a mask")
