"""DataConfigs with the options of their corpus written beside the shared fields."""

import dataclasses
from typing import Any

from icl_jax.config import DataConfig
from icl_jax.config.corpora import corpus_kind, corpus_name

_SHARED = {field.name for field in dataclasses.fields(DataConfig)}


def data_config(source: str = "repeats", **fields: Any) -> DataConfig:
    options = corpus_kind(corpus_name(source)).options(**{n: v for n, v in fields.items() if n not in _SHARED})
    return DataConfig(source=source, options=options, **{n: v for n, v in fields.items() if n in _SHARED})
