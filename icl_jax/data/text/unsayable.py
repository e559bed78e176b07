"""What a tokenizer has no token for, and would leave out without a word or fail at."""

import json
from collections import Counter

from tokenizers import Tokenizer, models, pre_tokenizers


class LostCharacters:
    """Counts the characters of texts that a tokenizer would leave out.

    A BPE leaves out what its vocabulary lacks, where it has neither a token for the unknown nor one for each byte.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocab = set(tokenizer.get_vocab(with_added_tokens=False))
        model = tokenizer.model
        self._may_lose = isinstance(model, models.BPE) and model.unk_token is None and not self._has_all_bytes()
        if self._may_lose:
            prefix, suffix = model.continuing_subword_prefix or "", model.end_of_word_suffix or ""
            self._forms = {("", ""), (prefix, ""), ("", suffix), (prefix, suffix)}
            self._falls_back = model.byte_fallback
        self._is_lost: dict[str, bool] = {}
        self.counts: Counter[str] = Counter()
        self.n_characters = 0

    def _has_all_bytes(self) -> bool:
        pre = json.loads(self._tokenizer.to_str())["pre_tokenizer"] or {}
        kinds = {part["type"] for part in pre.get("pretokenizers", [pre]) if part}
        return "ByteLevel" in kinds and self._vocab.issuperset(pre_tokenizers.ByteLevel.alphabet())

    def add(self, text: str) -> None:
        """Count those of a text."""
        self.n_characters += len(text)
        if self._may_lose:
            for character in set(text):
                if character not in self._is_lost:
                    self._is_lost[character] = not all(map(self._can_say, _symbols(self._tokenizer, character)))
                if self._is_lost[character]:
                    self.counts[character] += text.count(character)

    def _can_say(self, symbol: str) -> bool:
        if any(f"{prefix}{symbol}{suffix}" in self._vocab for prefix, suffix in self._forms):
            return True
        return self._falls_back and all(f"<0x{byte:02X}>" in self._vocab for byte in symbol.encode())

    def __str__(self) -> str:
        """How many, and the most common ones; empty where there are none."""
        if not self.counts:
            return ""
        common = " ".join(repr(character) for character, _ in self.counts.most_common(5))
        return f"{self.counts.total():,} of {self.n_characters:,} characters, such as {common}"


def _symbols(tokenizer: Tokenizer, text: str) -> str:
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return "".join(_words(tokenizer, normal))


def _words(tokenizer: Tokenizer, normal: str) -> list[str]:
    pre = tokenizer.pre_tokenizer
    return [word for word, _ in pre.pre_tokenize_str(normal)] if pre else [normal]


def unknown_word(tokenizer: Tokenizer, text: str) -> str | None:
    """The first word of a text that the tokenizer fails at, for it has no token for the unknown either."""
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    for word in dict.fromkeys(_words(tokenizer, normal)):
        try:
            tokenizer.model.tokenize(word)
        except Exception:  # the library raises bare Exceptions
            return word
    return None
