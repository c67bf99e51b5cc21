"""The bundle open_cxr against the conformance kit, as a third party's plugin would be."""

from medvlp_core.testing import conformance

test_open_cxr = conformance("open_cxr")
