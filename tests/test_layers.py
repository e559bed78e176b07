import pytest
from importlinter.cli import lint_imports


def test_imports_go_to_lower_layers_only(checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    assert lint_imports(no_cache=True) == 0
