"""The bundle standard against the conformance kit, as a third party's plugin would be."""

from medvlp_core.testing import conformance

test_standard = conformance(
    "standard",
    known_failures={
        "standard.timm_vit:compiles": "the number of visible patches is read from the mask, so forward is no single graph",
    },
)
