"""medvlp's conformance kit, run on every component of this package."""

from medvlp_core.testing import conformance

test_acme_fusion = conformance("acme_fusion")
