"""The conformance kit: an author's two lines, and every check behind them (docs/conformance.md).

::

    from medvlp_core.testing import conformance

    test_acme = conformance("acme")

``medvlp conform acme`` does the same without pytest. Importing this package loads no torch; running a check does.
"""

from __future__ import annotations

from medvlp_core.testing.pytest_kit import conformance

__all__ = ["conformance"]
