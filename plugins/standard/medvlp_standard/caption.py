"""A decoder that writes texts: a causal GPT-2 of transformers with cross-attention to the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from medvlp_core import Dims
from medvlp_core.nn import Decoder, Output, word_loss
from medvlp_standard.specs.decoders import CaptionDecoderSpec


class CaptionDecoder(Decoder):
    """``L = -1/R sum_{b,l} log p(w_{b,l+1} | w_{b,1..l}, V_b)``, over the R tokens behind [CLS] that are no padding.

    A GPT-2 with random weights: each layer is causal self-attention, cross-attention to ``W V + b`` and a feed-forward layer,
    behind layer norms. [CLS] is the first input, and the end of the text (which the tokenizer puts there) the last word to predict.

    Shape:
        image_tokens (B, S, Di), token_ids, text_is_valid (B, L); next_word_logits (B, L, V), at l those of token l + 1;
        generated_ids (B, G), G = the longest text, behind its end filled up with the end of text.

    Reference:
        Radford et al., Language Models are Unsupervised Multitask Learners (GPT-2), 2019, with the cross-attention of Vaswani et
        al., Attention Is All You Need, NeurIPS 2017; the loss of Tschannen et al., Image Captioners Are Scalable Vision Learners
        Too (Cap), NeurIPS 2023. Deviation: the output matrix is not tied to the token embeddings.
    """

    def __init__(self, spec: CaptionDecoderSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.spec = spec
        self.longest, self.end_id = dims["L"], dims["End"]
        self.project = nn.Linear(dims["Di"], spec.width)
        config = GPT2Config(
            vocab_size=dims["V"],
            n_positions=dims["L"],
            n_embd=spec.width,
            n_layer=spec.layers,
            n_head=spec.heads,
            n_inner=round(spec.width * spec.ffn_ratio),
            resid_pdrop=spec.dropout,
            embd_pdrop=spec.dropout,
            attn_pdrop=spec.dropout,
            add_cross_attention=True,
            tie_word_embeddings=False,
            # Where a text ends is the tokenizer's business; these would only make transformers warn of GPT-2's own ids.
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        self.gpt = GPT2LMHeadModel(config)

    def forward(self, image_tokens: Tensor, token_ids: Tensor, text_is_valid: Tensor) -> Output:
        """Predict each next token from those before it; padding stands behind all of them, so that a causal mask hides it."""
        logits = self.gpt(input_ids=token_ids, encoder_hidden_states=self.project(image_tokens), use_cache=False).logits
        is_scored = text_is_valid[:, 1:]
        loss = word_loss(logits[:, :-1][is_scored], token_ids[:, 1:][is_scored])
        return Output(ports={"next_word_logits": logits}, losses={"caption": loss})

    def generate(
        self,
        image_tokens: Tensor,
        token_ids: Tensor,
        *,
        max_length: int | None = None,
        num_beams: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        length_penalty: float | None = None,
    ) -> Tensor:
        """Write a text for each image with transformers' ``generate``, from the first token on; None = as the recipe says."""
        spec = self.spec
        is_drawn = spec.do_sample if do_sample is None else do_sample
        beams = num_beams or spec.num_beams
        chosen: dict[str, Any] = {}
        if is_drawn:
            chosen |= {"temperature": temperature or spec.temperature, "top_p": top_p or spec.top_p, "top_k": top_k or 0}
        if beams > 1:
            chosen["length_penalty"] = spec.length_penalty if length_penalty is None else length_penalty
        length = max_length or self.longest
        config = GenerationConfig(
            max_length=length,
            num_beams=beams,
            do_sample=is_drawn,
            eos_token_id=self.end_id,
            pad_token_id=self.end_id,
            use_cache=True,
            **chosen,
        )
        start = token_ids[:, :1]
        found: Tensor = self.gpt.generate(
            inputs=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=self.project(image_tokens),
            generation_config=config,
        )
        return nn.functional.pad(found, (0, length - found.shape[1]), value=self.end_id)
