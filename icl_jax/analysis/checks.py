"""What can be refused before JAX is there: that takes seconds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from icl_jax.analysis.choose_snapshots import choose_entries
from icl_jax.config import UserError
from icl_jax.measures.names import measurement_names
from icl_jax.rundir import RunDir

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def check_names(only: Sequence[str] | None) -> None:
    """Raise UserError for a name that no measurement has."""
    names = measurement_names()
    for name in only or ():
        if name not in names:
            raise UserError(f"--only = {name!r}: no such measurement; there are {', '.join(names)}")


def check_analysis(run: RunDir, snapshots: int | Sequence[int] | None = None) -> None:
    """Raise UserError where there is nothing to analyze, or no snapshot of a step."""
    choose_entries(run.snapshots(), snapshots)
    if not run.held_out_path.exists():
        run.load_held_out()


def text_ids(run: RunDir, text: str) -> "tuple[Tokenizer | None, list[int]]":
    """The run's tokenizer, and its ids of a text without BOS. Raises UserError as `probe` does."""
    from icl_jax.data.text.text_ids import encode_text  # with the library of tokenizers
    from icl_jax.data.text.tokenizing import run_tokenizer

    model = run.config.model
    tokenizer = run_tokenizer(run.read_tokenizer(), run.root / "tokenizer.json")
    found = encode_text(text, tokenizer, model.vocab_size)
    if len(found) >= model.n_ctx:
        allowed = f"must be at most {model.n_ctx - 1}: model.n_ctx = {model.n_ctx}, and BOS takes one position"
        raise UserError(f"TEXT: {len(found)} tokens: {allowed}")
    return tokenizer, found
