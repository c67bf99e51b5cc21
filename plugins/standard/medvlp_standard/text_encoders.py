"""Text encoders over transformers, cut between the embeddings and the layers so that a fusion may act there.

Shape letters: B batch, L tokens, Dt width.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from medvlp_core import Dims, Problem, SpecError, is_skipping_pretrained_init
from medvlp_core.model import LoadedWeights
from medvlp_core.nn import TextEncoder
from medvlp_standard.hf_facts import config_facts, first_line, is_path, local_folder
from medvlp_standard.hub import hub_answers, quiet_hub
from medvlp_standard.specs.text_encoders import BertSpec, HfTextSpec

_GET_HINT = (
    "give a local folder made with save_pretrained, or download the model once where there is a network "
    "(`hf download NAME`) and point HF_HOME to that cache"
)


class _GivenEmbeddings(nn.Module):
    """Stands where a model's embeddings were and hands through the ``inputs_embeds`` that the model was called with."""

    def forward(self, *arguments: Any, inputs_embeds: Tensor | None = None, **others: Any) -> Tensor:
        # Models call their embeddings with and without names; the only float tensor among the arguments is inputs_embeds.
        found = [inputs_embeds, *arguments]
        return next(one for one in found if isinstance(one, Tensor) and one.is_floating_point())


class SplitModel(nn.Module):
    """A BERT-like transformers model in two stages, ``layers(embed(ids))``, equal to the model's own forward.

    The embeddings are taken out of the model; its own ``forward`` is then called with ``inputs_embeds`` and ``attention_mask``,
    which are public arguments of every such model, so that building the attention mask stays transformers' work in each version.
    The pooler is removed: nothing uses it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embeddings: nn.Module = model.embeddings
        model.embeddings = _GivenEmbeddings()
        # ELECTRA embeds in a narrower width and projects.
        self.projection: nn.Module = getattr(model, "embeddings_project", None) or nn.Identity()
        if hasattr(model, "embeddings_project"):
            model.embeddings_project = nn.Identity()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        self.layers: nn.Module = model

    def library_names(self) -> dict[str, str]:
        """transformers' names and those here."""
        names = {name: name.removeprefix("layers.") for name in self.state_dict()}
        return {name.replace("projection.", "embeddings_project.", 1): own for own, name in names.items()}

    def whole(self) -> Any:
        """A copy as transformers knows it."""
        model: Any = copy.deepcopy(self.layers)
        model.embeddings = copy.deepcopy(self.embeddings)
        if not isinstance(self.projection, nn.Identity):
            model.embeddings_project = copy.deepcopy(self.projection)
        return model

    def embed(self, token_ids: Tensor) -> Tensor:
        """(B, L) to (B, L, Dt)."""
        return self.projection(self.embeddings(input_ids=token_ids))

    def encode(self, text_embeddings: Tensor, text_is_valid: Tensor) -> Tensor:
        """(B, L, Dt) to (B, L, Dt); padding is no key of any attention."""
        return self.layers(inputs_embeds=text_embeddings, attention_mask=text_is_valid.long()).last_hidden_state


class SplitEncoder(TextEncoder):
    """What both encoders share: a :class:`SplitModel` that goes to transformers and comes from there."""

    exports = ("transformers",)
    #: The attribute that holds the model, for its name stands in every checkpoint.
    holder: str

    @property
    def split(self) -> SplitModel:
        """The model."""
        return getattr(self, self.holder)

    def embed(self, token_ids: Tensor) -> Tensor:
        """The model's own embedding stage (words, positions, norm, dropout): (B, L) to (B, L, Dt)."""
        return self.split.embed(token_ids)

    def encode(self, text_embeddings: Tensor, text_is_valid: Tensor) -> Tensor:
        """The model's layers: (B, L, Dt) to (B, L, Dt)."""
        return self.split.encode(text_embeddings, text_is_valid)

    def library_names(self) -> dict[str, str]:
        """transformers' names."""
        return {library: f"{self.holder}.{name}" for library, name in self.split.library_names().items()}

    def fit_weight(self, name: str, found: Tensor, own: Tensor) -> Tensor | None:
        """The first rows of a longer table of positions; words of another vocabulary have nothing in common."""
        is_table = name.endswith("position_embeddings.weight") and found.shape[1:] == own.shape[1:]
        return found[: len(own)] if is_table and len(found) > len(own) else None

    def export(self, kind: str, folder: Path) -> str:
        """transformers' own folder, compared with this module after loading it.

        Raises:
            SpecError: transformers' model does not give the same features (MV510).
        """
        whole = self.split.whole().cpu()
        # The pooler was removed; loading would make a new one, with random weights.
        arguments = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(type(whole)).parameters else {}
        with quiet_hub():
            whole.save_pretrained(folder)
            loaded = AutoModel.from_pretrained(folder, local_files_only=True, **arguments).eval()
        token_ids, is_valid = _sample(int(loaded.config.vocab_size))
        with torch.no_grad():
            wanted = self(token_ids, is_valid)
            found = loaded(input_ids=token_ids, attention_mask=is_valid.long()).last_hidden_state
        if not torch.allclose(found[is_valid], wanted[is_valid], rtol=1e-5, atol=1e-5):
            text = f"transformers' {type(loaded).__name__} gives other features from the exported weights"
            raise SpecError(Problem(code="MV510", text=text, hint="export to safetensors instead"))
        given = "".join(f", {name}={value}" for name, value in arguments.items())
        return (
            "from transformers import AutoModel, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained(".")\n'
            f'model = AutoModel.from_pretrained("."{given}).eval()\n'
            'texts = ["The lungs are clear.", "Pneumonia."]\n'
            'tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")\n'
            'features = model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state'
        )


class Bert(SplitEncoder):
    """A small BERT with random weights and learned positions.

    Reference:
        Devlin et al., BERT, NAACL 2019; without segment embeddings to speak of (one segment) and without a pooler.
    """

    holder = "bert"

    def __init__(self, spec: BertSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        config = BertConfig(
            vocab_size=dims["V"],
            hidden_size=spec.width,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            intermediate_size=spec.ffn_width or 4 * spec.width,
            hidden_dropout_prob=spec.dropout,
            attention_probs_dropout_prob=spec.dropout,
            max_position_embeddings=spec.max_positions or dims["L"],
            type_vocab_size=1,
            # No id gets a frozen zero vector: which id pads is the tokenizer's business, and validity hides it anyway.
            pad_token_id=None,
        )
        self.bert = SplitModel(BertModel(config, add_pooling_layer=False))


class HfText(SplitEncoder):
    """Any BERT-like model of transformers, with its own weights or with random ones.

    Raises:
        SpecError: the files are missing or broken (MV507), the model is not BERT-like (MV303), or the recipe's texts are longer or
            its vocabulary larger than the model's tables (MV203).
    """

    holder = "hf"

    def __init__(self, spec: HfTextSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        model, self.loaded = _load(spec, dims)
        self.width = int(model.config.hidden_size)
        self.hf = _checked_split(model, spec.model)

    def dims(self) -> dict[str, int]:
        """The true width, for models whose files the spec could not read."""
        return {"Dt": self.width}


def _load(spec: HfTextSpec, dims: Dims) -> tuple[Any, LoadedWeights | None]:
    """The transformers model in float32, and what became of the tensors in its files.

    Files that lie here are used without asking the network.
    """
    folder = local_folder(spec.model)
    if folder is None and is_path(spec.model):
        raise SpecError(Problem(code="MV507", text=f"there is no folder {spec.model!r}", hint=_GET_HINT))
    is_random = not spec.pretrained or is_skipping_pretrained_init()
    is_here = folder is not None and (is_path(spec.model) or is_random or _has_weights(folder))
    source = str(folder) if is_here else spec.model
    options = {"local_files_only": is_here or not hub_answers(spec.model), "trust_remote_code": False}
    try:
        with quiet_hub():
            model, info = _load_from(source, spec, dims, options)
    except SpecError:
        raise
    except Exception as error:
        text = f"the text model {spec.model!r} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise SpecError(Problem(code="MV507", text=text, hint=_GET_HINT)) from error
    missing = sorted(key for key in info.get("missing_keys", ()) if "pooler" not in key.split("."))
    if missing:
        text = f"the weights in {spec.model!r} leave {len(missing)} tensors of a {type(model).__name__} without a value"
        details = tuple(f"missing: {key}" for key in missing[:5])
        hint = "they belong to another architecture; set pretrained: false for random weights"
        raise SpecError(Problem(code="MV507", text=text, details=details, hint=hint))
    if is_random:
        return model.float(), None
    matched = tuple(key for key in model.state_dict() if key not in info["missing_keys"])
    return model.float(), LoadedWeights(matched=matched, adapted=(), unused=tuple(sorted(info["unexpected_keys"])))


def _load_from(source: str, spec: HfTextSpec, dims: Dims, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers says of the names in the files; nothing for random weights."""
    config = AutoConfig.from_pretrained(source, **options)
    _check_tables(spec, dims, config)
    if not spec.pretrained:
        config.vocab_size = dims["V"]
    if not spec.pretrained or is_skipping_pretrained_init():
        return AutoModel.from_config(config, trust_remote_code=False), {}
    return AutoModel.from_pretrained(source, output_loading_info=True, **options)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _check_tables(spec: HfTextSpec, dims: Dims, config: Any) -> None:
    """The contract checks this too, if config.json was at hand then; here it is certain.

    Raises:
        SpecError: texts or vocabulary of the recipe do not fit into the model's tables (MV203).
    """
    positions = config_facts(config.to_dict()).positions
    if positions is not None and dims["L"] > positions:
        text = f"{spec.model!r} takes texts of at most {positions} tokens, and the tokenizer's max_length is {dims['L']}"
        raise SpecError(Problem(code="MV203", text=text, hint=f"set tokenizer.max_length to {positions} or less"))
    if spec.pretrained and dims["V"] > config.vocab_size:
        text = f"{spec.model!r} has vectors for {config.vocab_size} tokens, and the tokenizer has {dims['V']}"
        hint = "use the tokenizer of the same model: tokenizer: {use: standard.hf_tokenizer, model: ...}"
        raise SpecError(Problem(code="MV203", text=text, hint=hint))


def _sample(vocabulary: int) -> tuple[Tensor, Tensor]:
    """A small padded batch: ids and validity."""
    token_ids = (torch.arange(12).reshape(2, 6) * 7 + 5) % vocabulary
    return token_ids, torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


def _checked_split(model: Any, name: str) -> SplitModel:
    """Split a model and prove on a small padded batch that the two stages give the model's own hidden states.

    Raises:
        SpecError: they do not, or the model has no embeddings to take out (MV303).
    """
    text = f"{name!r} is a {type(model).__name__}, and standard.hf_text cannot split it into embeddings and layers"
    hint = "models that work: BERT, RoBERTa, DistilBERT, ELECTRA, MPNet and others built like them"
    if not hasattr(model, "embeddings"):
        raise SpecError(Problem(code="MV303", text=text, hint=hint))
    token_ids, is_valid = _sample(int(model.config.vocab_size))
    model.eval()
    with torch.no_grad():
        try:
            wanted = model(input_ids=token_ids, attention_mask=is_valid.long()).last_hidden_state
            split = SplitModel(model)
            embedded = split.embed(token_ids)
            found = split.encode(embedded, is_valid)
            is_same = found.shape == wanted.shape and torch.allclose(found[is_valid], wanted[is_valid], rtol=1e-3, atol=1e-4)
        except (RuntimeError, TypeError, ValueError, AttributeError, StopIteration) as error:
            details = (f"{type(error).__name__}: {error}",)
            raise SpecError(Problem(code="MV303", text=text, details=details, hint=hint)) from error
    if not is_same:
        raise SpecError(Problem(code="MV303", text=text, details=("the two stages give other hidden states",), hint=hint))
    if embedded.shape != wanted.shape:
        details = (f"its embeddings are {embedded.shape[-1]} wide and its tokens {wanted.shape[-1]}; fusions expect one width",)
        raise SpecError(Problem(code="MV303", text=text, details=details, hint=hint))
    return split.train()
