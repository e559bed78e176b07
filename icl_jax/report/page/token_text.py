"""Tokens as text: printable strings of the run's tokenizer, or ids where it has none."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from icl_jax.data.text.tokenizing import decode_tokens, run_tokenizer
from icl_jax.report.reported_run import ReportedRun


class TokenText:
    """Texts of a run's token ids."""

    def __init__(self, run: ReportedRun) -> None:
        self._run = run.run

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        return run_tokenizer(self._run.read_tokenizer(), self._run.path / "tokenizer.json")

    def of(self, ids: Iterable[int] | np.ndarray) -> list[str]:
        """One printable string per id. Raises UserError if tokenizer.json is damaged."""
        numbers = [int(i) for i in ids]
        return [str(i) for i in numbers] if self._tokenizer is None else decode_tokens(self._tokenizer, numbers)
