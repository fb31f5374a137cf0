"""A tokenizer with one token a character, as the `tokenizers` library and `transformers` read it. Pure.

It is a byte-level BPE, not the simpler WordLevel: for Qwen models `transformers` 5 throws the pre-tokenizer of the file
away and builds its own byte-level one around the vocabulary, so only this form means the same to every reader. A
character of one UTF-8 byte is a token by itself; others need the pieces that lead to them, which come after all
characters.
"""

from __future__ import annotations

from typing import Any

PAD, EOS = "<pad>", "<eos>"
PAD_ID, EOS_ID = 0, 1


def tokens_of(characters: str) -> tuple[str, ...]:
    """Tokens by id: `<pad>`, `<eos>`, the characters in their order, then pieces of characters of several bytes."""
    whole = [_spell(character.encode()) for character in characters]
    pieces = [piece for character in characters for piece in _pieces(character.encode())]
    return tuple(dict.fromkeys((PAD, EOS, *whole, *pieces)))


def tokenizer_json(characters: str) -> dict[str, Any]:
    """Content of `tokenizer.json`.

    The unknown token is one that the vocabulary lacks, so that a character without a token is an error of the library
    and never lost in silence.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(number, token) for number, token in ((PAD_ID, PAD), (EOS_ID, EOS))],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens_of(characters))},
            "merges": _merges(characters),
        },
    }


def tokenizer_config(longest: int) -> dict[str, Any]:
    """Content of `tokenizer_config.json`; `longest` is the most tokens of a text."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": PAD,  # named only so that `transformers` does not add one of its own
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }


def _special(number: int, token: str) -> dict[str, Any]:
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _printable_bytes() -> dict[int, str]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others are moved above 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


_LETTERS = _printable_bytes()


def _spell(raw: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in raw)


def _pieces(raw: bytes) -> list[str]:
    """Single bytes and proper prefixes of a character of several bytes."""
    if len(raw) == 1:
        return []
    return [_spell(bytes([byte])) for byte in raw] + [_spell(raw[:end]) for end in range(2, len(raw))]


def _merges(characters: str) -> list[list[str]]:
    """Pairs of tokens that become one: each character of several bytes is put together from the left."""
    pairs = [
        (_spell(raw[:end]), _spell(raw[end : end + 1]))
        for raw in (character.encode() for character in characters)
        for end in range(1, len(raw))
    ]
    return [list(pair) for pair in dict.fromkeys(pairs)]
