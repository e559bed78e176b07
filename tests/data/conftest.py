"""A small text corpus, and a cache of its own for tests that look into it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icl_jax.config import Config, ModelConfig, ProbeConfig
from tests.data_configs import data_config


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of prepared tokens of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from icl_jax.data.text.token_cache import cache_root

    return cache_root()


def _story(rng: np.random.Generator) -> str:
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 7))) for _ in range(30)]
    return "\n".join(" ".join(rng.choice(words, 11)) for _ in range(7))


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 23 text files, one of them blank."""
    folder = tmp_path_factory.mktemp("stories")
    rng = np.random.default_rng(5)
    for i in range(23):
        path = folder / f"part{i % 3}" / f"story{i:02}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(" \n" if i == 9 else _story(rng), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    """A config out of fields of [model] and [data], small unless told otherwise."""

    def make(**fields: Any) -> Config:
        model = {name: fields.pop(name) for name in ("vocab_size", "n_ctx") if name in fields}
        data = {"held_out_rows": 11} | fields
        return Config(
            model=ModelConfig(**({"vocab_size": 300, "n_ctx": 19} | model)),
            data=data_config(**data),
            probes=ProbeConfig(held_out_rows=1),
        )

    return make
