"""The data set of the sample `reverse-letters`: strings of letters, to be written backward."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import Any

from twinpod.errors import InputError
from twinpod.sampling.items import Item

__all__ = ["reverse"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def reverse(settings: dict[str, Any], seed: int, size: int) -> Iterator[Item]:
    """`size` distinct strings of `letters` letters (default 5) out of the first `alphabet` ones (default 10).

    All of them when there are fewer. `end` is put after each (default nothing: the job's template is the usual place).
    Same settings and seed, same strings.
    """
    letters, alphabet, end = _read(settings)
    return islice(_strings(letters, alphabet, end, seed), min(size, alphabet**letters))


def _strings(letters: int, alphabet: int, end: str, seed: int) -> Iterator[Item]:
    random, seen = Random(seed), set()
    while True:
        number = random.randrange(alphabet**letters)
        if number not in seen:
            seen.add(number)
            text = "".join(LETTERS[number // alphabet**place % alphabet] for place in range(letters))
            yield Item(prompt=text + end, answer=text[::-1])


def _read(settings: dict[str, Any]) -> tuple[int, int, str]:
    where = "dataset.entryPoint.settings"
    known = {"letters": 5, "alphabet": 10, "end": ""}
    if unknown := sorted(set(settings) - set(known)):
        raise InputError(f"unknown {', '.join(unknown)}", where=where, mend=f"known are {', '.join(known)}")
    letters, alphabet, end = (settings.get(name, default) for name, default in known.items())
    for name, value, most in (("letters", letters, 1000), ("alphabet", alphabet, len(LETTERS))):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise InputError(f"is {value!r}", where=f"{where}.{name}", mend=f"give a whole number from 1 to {most}")
    if not isinstance(end, str):
        raise InputError(f"is {end!r}", where=f"{where}.end", mend="give a string")
    return letters, alphabet, end
