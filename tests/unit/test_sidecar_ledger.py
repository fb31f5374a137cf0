"""What a half remembers of commands."""

from __future__ import annotations

import pytest

from twinpod.errors import StaleEpoch
from twinpod.records.life import Reply, Verb
from twinpod.testing.halves import order
from twinpod_sidecar.ledger import REMEMBERED, Known, Ledger, New, Running, admit, settle


def reply(key: str) -> Reply:
    return Reply(key=key, error="", retryable=False, seconds=1.0, detail=key)


def test_a_new_key_is_executed() -> None:
    ledger, verdict = admit(Ledger(), order(Verb.REST, 1))
    assert verdict == New()
    assert ledger.running == {"1/1/rest/1"}


def test_a_running_key_is_waited_for() -> None:
    ledger, _ = admit(Ledger(), order(Verb.REST, 1))
    assert admit(ledger, order(Verb.REST, 1)) == (ledger, Running())


def test_an_answered_key_gets_its_answer_again() -> None:
    ledger, _ = admit(Ledger(), order(Verb.REST, 1))
    ledger = settle(ledger, reply("1/1/rest/1"))
    assert ledger.running == frozenset()
    assert admit(ledger, order(Verb.REST, 1))[1] == Known(reply("1/1/rest/1"))


def test_the_last_answers_are_remembered_and_older_ones_forgotten() -> None:
    ledger = Ledger()
    for number in range(REMEMBERED + 1):
        ledger = settle(ledger, reply(f"1/1/rest/{number}"))
    assert admit(ledger, order(Verb.REST, 0))[1] == New()
    assert isinstance(admit(ledger, order(Verb.REST, 1))[1], Known)
    assert isinstance(admit(ledger, order(Verb.REST, REMEMBERED))[1], Known)


@pytest.mark.parametrize(("seen", "sent", "newest"), [(0, 1, 1), (1, 1, 1), (1, 5, 5)])
def test_the_newest_epoch_is_kept(seen: int, sent: int, newest: int) -> None:
    assert admit(Ledger(epoch=seen), order(Verb.REST, epoch=sent))[0].epoch == newest


def test_an_older_epoch_is_refused_even_for_a_known_key() -> None:
    ledger = settle(Ledger(epoch=2), reply("1/1/rest/0"))
    with pytest.raises(StaleEpoch, match="command 1/1/rest/0: epoch 1 is over, epoch 2 commands here"):
        admit(ledger, order(Verb.REST, epoch=1))
