"""CoCa: a causal text tower with a summary, and a captioning decoder behind it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import Decoder, FeedForward, Output, TextEncoder, at_least_float32
from medvlp_gallery.specs.coca import CaptionerSpec, CausalTextSpec


class Attention(nn.Module):
    """Multi-head attention with a mask of what each query may see.

    Shape:
        queries (B, L, D), keys_values (B, S, Dk), may_see (B or 1, L, S) bool or None, result (B, L, D).
    """

    def __init__(self, width: int, heads: int, key_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(key_width or width, width), nn.Linear(key_width or width, width)

    def forward(self, queries: Tensor, keys_values: Tensor, may_see: Tensor | None = None) -> Tensor:
        """Attend to what may be seen."""
        parts = (self.query(queries), self.key(keys_values), self.value(keys_values))
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in parts)
        mask = None if may_see is None else may_see.unsqueeze(1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2))


class CausalBlock(nn.Module):
    """``x += SelfAttn(LN x); x += CrossAttn(LN x, y) if there is y; x += FFN(LN x)``, with a mask for the first."""

    def __init__(self, width: int, heads: int, memory_width: int | None = None) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width) if memory_width else None
        self.cross = Attention(width, heads, memory_width) if memory_width else None
        self.last_norm, self.feed_forward = nn.LayerNorm(width), FeedForward(width, 4 * width)

    def forward(self, x: Tensor, may_see: Tensor, memory: Tensor | None = None) -> Tensor:
        """Mix what may be seen, then bring in ``memory``."""
        normed = self.norm(x)
        x = x + self.attention(normed, normed, may_see)
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            x = x + self.cross(self.cross_norm(x), memory)
        return x + self.feed_forward(self.last_norm(x))


def past(length: int, device: torch.device) -> Tensor:
    """(1, length, length) bool: each position sees itself and those before it."""
    return torch.ones(1, length, length, dtype=torch.bool, device=device).tril()


class CausalText(TextEncoder):
    """``h = blocks([e_1 .. e_L ; c])``, each position with those before it; c is a learned vector, and its result the summary.

    Shape:
        token_ids (B, L); text_embeddings and text_tokens (B, L, Dt), text_is_valid (B, L), text_summary (B, Dt).

    Reference:
        Yu et al., CoCa: Contrastive Captioners are Image-Text Foundation Models, TMLR 2022: the unimodal half of the decoder, with
        a class token at the end of the text. Deviation: that token does not see padding.
    """

    def __init__(self, spec: CausalTextSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.words = nn.Embedding(dims["V"], spec.width)
        self.positions = nn.Parameter(torch.randn(dims["L"], spec.width) * 0.02)
        self.summary = nn.Parameter(torch.randn(spec.width) * 0.02)
        self.blocks = nn.ModuleList(CausalBlock(spec.width, spec.heads) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Words and positions."""
        return self.words(token_ids) + self.positions[: token_ids.shape[1]]

    def encode(self, text_embeddings: Tensor, text_is_valid: Tensor) -> Output:  # type: ignore[override]
        """Tokens that know the past, and the summary."""
        x = torch.cat([text_embeddings, self.summary.to(text_embeddings.dtype).expand(len(text_embeddings), 1, -1)], dim=1)
        is_seen = F.pad(text_is_valid, (0, 1), value=True).unsqueeze(1)
        itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        may_see = (past(x.shape[1], x.device) & is_seen) | itself  # a row of padding sees itself, so that softmax stays finite
        for block in self.blocks:
            x = block(x, may_see)
        x = self.norm(x)
        return Output({"text_tokens": x[:, :-1], "text_summary": x[:, -1]})


class Captioner(Decoder):
    """Cross-entropy of each next word, ``-sum_l log p(w_{l+1} | w_1 .. w_l, image)``, mean over the real words.

    Shape:
        text_tokens (B, L, Dt), image_vectors (B, Q, Di), token_ids and text_is_valid (B, L); next_word_logits (B, L, V), at l those
        of the word at l + 1; {"caption": scalar}, 0 without any word.

    Reference:
        Yu et al. (CoCa), TMLR 2022: the multimodal half of the decoder and the captioning loss.
    """

    def __init__(self, spec: CaptionerSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.blocks = nn.ModuleList(CausalBlock(dims["Dt"], spec.heads, dims["Di"]) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(dims["Dt"])
        self.to_vocabulary = nn.Linear(dims["Dt"], dims["V"])

    def forward(self, text_tokens: Tensor, image_vectors: Tensor, token_ids: Tensor, text_is_valid: Tensor) -> Output:
        """Logits of each next word, and their loss."""
        x, may_see = text_tokens, past(text_tokens.shape[1], text_tokens.device)
        for block in self.blocks:
            x = block(x, may_see, image_vectors)
        logits = self.to_vocabulary(self.norm(x))
        is_scored = text_is_valid[:, 1:]
        errors = F.cross_entropy(at_least_float32(logits[:, :-1]).transpose(1, 2), token_ids[:, 1:], reduction="none")
        loss = errors.masked_fill(~is_scored, 0.0).sum() / is_scored.sum().clamp(min=1)
        return Output({"next_word_logits": logits}, {"caption": loss})
