import pytest
from importlinter.cli import lint_imports


def test_imports_go_to_lower_layers_only(checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    # It would silence every logger there is, for the tests that come after in this process.
    monkeypatch.setattr("logging.config.dictConfig", lambda _config: None)
    assert lint_imports(no_cache=True) == 0
