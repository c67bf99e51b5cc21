"""Names that shipped stay: recipes, runs and checkpoints of users hold them."""

from __future__ import annotations

from medvlp_core.plugins.host import PluginHost

#: Add new names; take none away. A component that goes is retired (docs/versioning.md) and stays in this list.
COMPONENTS = (
    "gallery.appended_contrast",
    "gallery.attention_pool",
    "gallery.captioner",
    "gallery.causal_text",
    "gallery.cell_decoder",
    "gallery.cell_masking",
    "gallery.gaussian_noise",
    "gallery.gaze_alignment",
    "gallery.hard_negatives",
    "gallery.heatmap_mixup",
    "gallery.matching",
    "gallery.momentum_contrast",
    "gallery.monai_unet",
    "gallery.phantom",
    "gallery.prompt_classifier",
    "gallery.region_masking",
    "gallery.semantic_matching",
    "gallery.semi_supervised",
    "gallery.table_encoder",
    "gallery.temporal",
    "gallery.vector_contrast",
    "gallery.volume_net",
    "gallery.volumes",
    "gallery.word_masking",
    "mpma.global_local",
    "mpma.image_decoder",
    "mpma.memory_fusion",
    "mpma.paired_masking",
    "mpma.report_decoder",
    "open_cxr.pairs",
    "standard.attention_pictures",
    "standard.bert",
    "standard.blockwise",
    "standard.caption_decoder",
    "standard.concat_attention",
    "standard.cross_attention",
    "standard.gloria",
    "standard.hf_text",
    "standard.hf_tokenizer",
    "standard.info_nce",
    "standard.linear_probe",
    "standard.loss_curves",
    "standard.manifest",
    "standard.masked_report_pictures",
    "standard.masked_words",
    "standard.mgca",
    "standard.mlm_head",
    "standard.no_fusion",
    "standard.patch_decoder",
    "standard.patch_reconstruction",
    "standard.pooled_add",
    "standard.random",
    "standard.reconstruction_pictures",
    "standard.retrieval",
    "standard.siglip",
    "standard.timm_cnn",
    "standard.timm_vit",
    "standard.wordpiece",
    "standard.zero_shot",
)
PRESETS = (
    "gallery:albef",
    "gallery:biovil_t",
    "gallery:coca",
    "gallery:code_and_pixels",
    "gallery:eclip",
    "gallery:egma",
    "gallery:mae_hd",
    "gallery:mean_teacher",
    "gallery:medclip",
    "mpma:base",
    "mpma:small",
)
KERNELS = ("mpma.memory_attention", "mpma.memory_topk")


def test_shipped_components_are_there_or_retired(host: PluginHost) -> None:
    gone = [name for name in COMPONENTS if name not in host.components and name not in host.components.retired]
    assert gone == []


def test_shipped_presets_and_kernels_are_there(host: PluginHost) -> None:
    assert [name for name in PRESETS if name not in host.presets] == []
    assert [name for name in KERNELS if name not in host.kernels] == []


def test_new_names_are_added_to_the_list(host: PluginHost) -> None:
    assert [name for name in host.components if name not in COMPONENTS] == []
