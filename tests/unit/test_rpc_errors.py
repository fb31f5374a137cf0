"""Every error of the tree crosses a process as itself."""

from __future__ import annotations

import pytest

from twinpod import errors
from twinpod.errors import EngineFault, IntegrityError, TwinpodError
from twinpod.records.life import Reply
from twinpod.rpc.errors import class_named, code_of, pack, raise_for, reply_error, unpack

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TwinpodError)]


def reply(error: str, *, retryable: bool = False) -> Reply:
    return Reply(key="k", error=error, retryable=retryable, seconds=0.0, detail="d")


@pytest.mark.parametrize("kind", CLASSES)
def test_class_line_and_parts_survive(kind: type[TwinpodError]) -> None:
    error = kind("whät", where="here", mend="do this")
    back = unpack(pack(error))
    assert (type(back), back.line(), back.where, back.mend) == (kind, error.line(), "here", "do this")


@pytest.mark.parametrize("kind", CLASSES)
def test_the_code_of_a_retryable_error_tells_so(kind: type[TwinpodError]) -> None:
    assert (code_of(kind("x")).name in ("UNAVAILABLE", "ABORTED")) == kind.retryable


def test_a_long_error_fits_into_metadata() -> None:
    assert len(pack(TwinpodError("x" * 10**6, where="y" * 10**6, mend="z" * 10**6))) < 8192


def test_a_class_of_a_newer_release_is_at_least_an_error() -> None:
    assert class_named("QuantumError") is TwinpodError


def test_a_reply_that_says_done_is_itself() -> None:
    assert raise_for(reply("")) == reply("")


def test_a_reply_s_error_is_raised_as_its_class() -> None:
    with pytest.raises(IntegrityError, match=r"^version 1: lies$"):
        raise_for(reply(reply_error(IntegrityError("lies", where="version 1"))))


def test_a_reply_s_retryable_is_the_half_s_word() -> None:
    with pytest.raises(EngineFault) as caught:
        raise_for(reply("EngineFault: x", retryable=False))
    assert caught.value.retryable is False
    assert EngineFault.retryable is True


def test_a_reply_without_a_class_keeps_its_words() -> None:
    with pytest.raises(TwinpodError, match=r"^ValueError: x: y$"):
        raise_for(reply("ValueError: x: y"))
