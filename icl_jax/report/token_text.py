"""Tokens as text: printable strings of the run's tokenizer, or ids where it has none."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from icl_jax.config import UserError
from icl_jax.data.tokenizing import decode_tokens, parse_tokenizer
from icl_jax.report.reported_run import ReportedRun


class TokenText:
    """Texts of a run's token ids."""

    def __init__(self, run: ReportedRun) -> None:
        self._path = run.run.path / "tokenizer.json"

    @cached_property
    def _tokenizer(self):  # type: ignore[no-untyped-def]
        return parse_tokenizer(self._path.read_text(encoding="utf-8")) if self._path.exists() else None

    def of(self, ids: Iterable[int] | np.ndarray) -> list[str]:
        """One printable string per id. Raises UserError if tokenizer.json is damaged."""
        numbers = [int(i) for i in ids]
        try:
            tokenizer = self._tokenizer
        except (OSError, ValueError) as error:
            raise UserError(f"{self._path}: cannot read the tokenizer: {error}") from None
        return [str(i) for i in numbers] if tokenizer is None else decode_tokens(tokenizer, numbers)
