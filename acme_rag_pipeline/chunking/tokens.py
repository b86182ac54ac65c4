"""Counting tokens with the tokenizer of the passage encoder, without its truncation."""

from __future__ import annotations

from pathlib import Path


class TokenCounter:
    """Token offsets and counts by a private copy of a `tokenizer.json`.

    The copy has truncation and padding switched off: the shipped MiniLM file pads and truncates every text to 128
    tokens, so that each text would count as 128. Special tokens are never counted; the caller leaves room for them.
    """

    def __init__(self, tokenizer_json: Path) -> None:
        """Load the tokenizer.

        Args:
            tokenizer_json: Path of a Hugging Face `tokenizers` file.

        Raises:
            ValueError: The file is missing or is not a tokenizer; the message names it.
        """
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(Path(tokenizer_json).read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises a bare Exception for a malformed file
            raise ValueError(f"cannot load the tokenizer {tokenizer_json}: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def token_offsets(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Return for each text the (start, end) character offsets of its tokens, in order.

        One `encode_batch`, so that a document costs one call.
        """
        return [encoding.offsets for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def counts(self, texts: list[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens left out."""
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def count(self, text: str) -> int:
        """Return the number of tokens of one text, special tokens left out."""
        return self.counts([text])[0]
