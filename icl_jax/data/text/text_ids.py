"""A text that a user typed, as the ids of a run's corpus."""

from tokenizers import Tokenizer

from icl_jax.config import UserError
from icl_jax.data.text.unsayable import LostCharacters, unknown_word
from icl_jax.telling import is_unicode

_SHOWN_CHARS = 40


def encode_text(text: str, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    """Ids of a text without BOS: by the tokenizer, or, for a corpus without one, the ids that the text lists.

    What looks like a special token is encoded as the text that it is. Raises UserError for a text that is empty or not
    valid Unicode, a word that the tokenizer does not know and an id outside of the vocabulary.
    """
    if not is_unicode(text):
        raise UserError("TEXT: must be valid Unicode")
    if not text.strip():
        raise UserError("TEXT is empty: must hold a token or more")
    if tokenizer is None:
        return [_parse_id(word, vocab_size) for word in text.split()]
    tokenizer.encode_special_tokens = True
    unknown = getattr(tokenizer.model, "unk_token", None)
    try:
        encoding = tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:  # the library raises bare Exceptions, here for an unknown word and no token for such
        word = unknown_word(tokenizer, text)
        named = "" if word is None else f": {_cut(word)!r}"
        what = f"holds what the run's tokenizer does not know{named} ({error})"
        raise UserError(f"TEXT = {_cut(text)!r}: {what}") from None
    lost = LostCharacters(tokenizer)
    lost.add(text)
    if lost.counts:
        raise UserError(f"TEXT = {_cut(text)!r}: the run's tokenizer has no token for {lost}")
    for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        if token == unknown:
            raise UserError(f"TEXT: {_cut(text[start:end])!r}: must be in the vocabulary of the run's tokenizer")
    if not encoding.ids:
        raise UserError(f"TEXT = {_cut(text)!r}: holds no token of the run's tokenizer")
    return list(encoding.ids)


def _parse_id(word: str, vocab_size: int) -> int:
    is_id = word.isascii() and word.isdigit() and len(word) <= len(str(vocab_size)) and int(word) < vocab_size
    if not is_id:
        allowed = f"must be an id from 0 to {vocab_size - 1}, for the run's corpus has no tokenizer"
        raise UserError(f"TEXT: {_cut(word)!r}: {allowed}")
    return int(word)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
