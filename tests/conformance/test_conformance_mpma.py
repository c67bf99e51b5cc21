"""The bundle mpma against the conformance kit, as a third party's plugin would be."""

from medvlp_core.testing import conformance

test_mpma = conformance(
    "mpma",
    known_failures={
        "mpma.report_decoder:ignores_padding": "positions=all averages over padding too, as MRM's code does",
    },
)
