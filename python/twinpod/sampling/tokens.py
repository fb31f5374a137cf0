"""Prompts to token ids and answers to text, by the tokenizer in the model folder.

Template, encoding and the end of an answer stand here, once: what the engine generates from and what the trainer learns
on are the same ids.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Vocabulary

from twinpod.api.safetensors_header import refuse_pointer
from twinpod.errors import InputError
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Prompt
from twinpod.sampling.items import Dataset, Item, Parts

__all__ = ["NO_TEXT", "Tokenizer", "build_prompts", "divide", "fill"]

NO_TEXT = "\ufffd"  # stands in an answer for an id that the tokenizer has no text for; no prompt's answer has it
BLANK = "\0"
PROBES = "0a"  # texts that a post-processor's tokens show around; the vocabulary's own words come next


class Tokenizer:
    """A tokenizer of the library `tokenizers`. `eos_id` ends an answer; `stop_ids` are all ids that do (eos first).

    `opening` are the ids that its post-processor puts before a text, such as a BOS. What it puts behind a text is never
    taken: an answer follows there.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        try:
            content = path.read_bytes()
            refuse_pointer(content, path)
            self._vocabulary = Vocabulary.from_buffer(content)
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}",
                where=str(path),
                mend="the model folder needs a tokenizer.json; set model.tokenizer in the job",
            ) from error
        except InputError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"is no tokenizer: {error}", where=str(path)) from error
        self._vocabulary.no_padding()
        self._vocabulary.no_truncation()
        self._unknown = self._unknown_id()
        self.stop_ids = self._read_stops(folder)
        self.eos_id = self.stop_ids[0]
        self.opening = self._read_opening()
        known = np.fromiter(self._vocabulary.get_vocab(with_added_tokens=True).values(), dtype=np.int64)
        self.size = int(known.max(initial=-1)) + 1
        self._has_text = np.zeros(self.size + 1, dtype=np.bool_)  # the last one is for every larger id
        self._has_text[known] = True

    def encode(self, text: str) -> TokenIds:
        """Ids of the text, without special tokens added."""
        return TokenIds(self._vocabulary.encode(text, add_special_tokens=False).ids)

    def encode_many(self, texts: Sequence[str]) -> list[TokenIds]:
        """The same for many texts at once."""
        return [TokenIds(one.ids) for one in self._vocabulary.encode_batch(list(texts), add_special_tokens=False)]

    def opened(self, ids: TokenIds) -> TokenIds:
        """The ids with `opening` before them, once: a template may have written it already."""
        return ids if ids[: len(self.opening)] == self.opening else self.opening + ids

    def decode(self, ids: TokenIds) -> str:
        """Text of the ids before the first that ends an answer. Other special tokens stand as their own text: left out,
        a model would learn to write them for nothing (it did: most answers had a padding token somewhere). An id that
        has no text, where the embedding has more rows than the tokenizer has tokens, reads as `NO_TEXT`.
        """
        stops = np.flatnonzero(np.isin(ids.array, self.stop_ids))
        array = ids.array[: stops[0]] if stops.size else ids.array
        holes = np.flatnonzero(~self._has_text[np.clip(array, 0, self.size)])
        edges = [-1, *holes.tolist(), array.size]
        runs = (array[before + 1 : after].tolist() for before, after in itertools.pairwise(edges))
        return NO_TEXT.join(self._vocabulary.decode(run, skip_special_tokens=False) for run in runs)

    def missing(self, texts: Sequence[str]) -> set[str]:
        """The characters of the texts that the tokenizer cannot express."""
        unknown = {character for character in set().union(*texts) if not self._knows(character)}
        return unknown & set().union(*map(self.blanked, texts)) if unknown else unknown

    def blanked(self, text: str) -> str:
        """The text with added tokens, such as a BOS that a template writes, blanked out: they are no characters."""
        for token in self._vocabulary.get_added_tokens_decoder().values():
            text = text.replace(token.content, BLANK * len(token.content))
        return text

    def _knows(self, character: str) -> bool:
        try:
            ids = self._vocabulary.encode(character, add_special_tokens=False).ids
        except Exception:  # noqa: BLE001  # the library's way to say: unknown, and no token for the unknown
            return False
        return bool(ids) and self._unknown not in ids

    def _unknown_id(self) -> int | None:
        word = getattr(self._vocabulary.model, "unk_token", None)
        return None if word is None else self._vocabulary.token_to_id(word)

    def _read_opening(self) -> TokenIds:
        words = itertools.chain(PROBES, self._vocabulary.get_vocab(with_added_tokens=False))
        probe = next((word for word in words if self._knows(word)), None)
        if probe is None:
            return TokenIds()
        found = self._vocabulary.encode(probe, add_special_tokens=True)
        added = itertools.takewhile(lambda pair: pair[1] is None, zip(found.ids, found.sequence_ids, strict=True))
        return TokenIds(token for token, _ in added)

    def _read_stops(self, folder: Path) -> tuple[int, ...]:
        ids: list[int] = []
        word = _read(folder / "tokenizer_config.json").get("eos_token")
        word = word.get("content") if isinstance(word, dict) else word
        if word is not None and (found := self._vocabulary.token_to_id(word)) is not None:
            ids.append(found)
        for name in ("generation_config.json", "config.json"):
            value = _read(folder / name).get("eos_token_id")
            ids.extend(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
        if not ids:
            raise InputError(
                "names no token that ends an answer",
                where=str(folder / "tokenizer_config.json"),
                mend='set "eos_token" to a token of tokenizer.json',
            )
        return tuple(dict.fromkeys(ids))


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error
    return value if isinstance(value, dict) else {}


def fill(template: str, prompt: str) -> str:
    """The template with the prompt in it. Other braces in it stay as they are."""
    return template.replace("{prompt}", prompt)


def build_prompts(dataset: Dataset, template: str, tokenizer: Tokenizer, *, special: bool) -> tuple[Prompt, ...]:
    """A prompt of each item, in the order of `dataset.items`; the ids are places there until `divide`.

    `special`: `Tokenizer.opened` of each.

    InputError names the prompt, the line and the character when the tokenizer lacks one.
    """
    texts = [fill(template, item.prompt) for item in dataset.items]
    if missing := tokenizer.missing(texts):
        raise _lacking(missing, dataset.items, [tokenizer.blanked(text) for text in texts])
    encoded = tokenizer.encode_many(texts)
    if special:
        encoded = [tokenizer.opened(tokens) for tokens in encoded]
    return tuple(
        Prompt(prompt_id=place, text=text, answer=item.answer, difficulty=item.difficulty, tokens=tokens)
        for place, (item, text, tokens) in enumerate(zip(dataset.items, texts, encoded, strict=True))
    )


def divide(prompts: Sequence[Prompt], parts: Parts) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Training prompts, with ids 0, 1, .., and held-out ones, with -1, -2, ..: what is appended later shifts none."""
    training = tuple(replace(prompts[place], prompt_id=number) for number, place in enumerate(parts.training))
    held_out = tuple(replace(prompts[place], prompt_id=-1 - number) for number, place in enumerate(parts.held_out))
    return training, held_out


def _lacking(missing: set[str], items: Sequence[Item], texts: Sequence[str]) -> InputError:
    """The error for the first prompt that has such a character."""
    number = next(number for number, text in enumerate(texts) if missing & set(text))
    text = texts[number]
    place = next(place for place, character in enumerate(text) if character in missing)
    line = text.count("\n", 0, place) + 1
    column = place - (text.rfind("\n", 0, place) + 1) + 1
    others = "".join(sorted(missing))
    return InputError(
        f"prompt {number}, line {line}, column {column}: the tokenizer has no {text[place]!r}",
        where=items[number].where or "dataset",
        mend=f"add the missing characters {others!r} to model.tokenizer.characters, or use another tokenizer",
    )
