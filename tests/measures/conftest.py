"""As in tests/analysis."""

from tests.analysis.conftest import _two_devices  # noqa: F401
