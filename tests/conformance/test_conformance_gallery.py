"""The bundle gallery against the conformance kit; what the kit cannot try of it yet is listed with the reason."""

from medvlp_core.testing import conformance

ONE_TEXT = "the kit's texts have two axes, and these have one for sentences too"
NO_VOLUMES = "the kit's whole models take images of two dimensions, and this takes volumes"
TARGET = "a target, from which no gradient is wanted"

test_gallery = conformance(
    "gallery",
    known_failures={
        "gallery.captioner:trains_in_a_model": "the kit's text encoder sees all of a text, and this writes it word by word",
        "gallery.cell_masking:trains_in_a_model": "the kit's heads want masked words or patches, and this masks a table",
        "gallery.gaussian_noise:trains_in_a_model": NO_VOLUMES,
        "gallery.gaze_alignment:ignores_padding": ONE_TEXT,
        "gallery.gaze_alignment:is_the_same_alone_and_in_a_batch": ONE_TEXT,
        "gallery.gaze_alignment:passes_gradients_on": f"gaze is {TARGET}",
        "gallery.hard_negatives:ignores_padding": "tokens are handed on with their padding, which other_text_is_valid marks",
        "gallery.hard_negatives:passes_gradients_on": "rows are chosen by vectors, without a gradient, as ALBEF does",
        "gallery.monai_unet:trains_in_a_model": NO_VOLUMES,
        "gallery.semantic_matching:tells_pairs_from_others": "its targets are the similarities of labels, not the pairs",
        "gallery.semi_supervised:passes_gradients_on": f"the teacher's logits are {TARGET}",
        "gallery.vector_contrast:tells_pairs_from_others": "the kit exchanges texts, and the other vector is of no text port",
        "gallery.volume_net:trains_in_a_model": NO_VOLUMES,
        "gallery.volumes:trains_in_a_model": NO_VOLUMES,
    },
)
