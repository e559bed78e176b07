"""From files of text to token ids: documents, tokenizers, the cache."""
