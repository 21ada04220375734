"""The ledger refuses every score that the rules do not allow, and its chain shows every later change."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.bytecount import ByteTable
from evaluation.ledger import Ledger, replay
from evaluation.windows import ValidationTokens, sliding_windows
from modeling_pgolf.errors import LegalityError

TOKENS = ValidationTokens(torch.arange(11))
TABLE = ByteTable(
    torch.ones(11, dtype=torch.int16), torch.zeros(11, dtype=torch.bool), torch.zeros(11, dtype=torch.bool)
)


def nats(count):
    return torch.full((count,), 0.5)


def finished():
    ledger = Ledger(TOKENS)
    ledger.post(0, nats(4), "a")
    ledger.update(ledger.posted(0, 4), "b")
    ledger.post(4, nats(6), "b")
    return ledger


def test_a_complete_ledger_has_a_score():
    score = finished().score(TABLE)
    assert (score.targets, score.bytes, score.nats) == (10, 10, 5.0)
    assert score.bits_per_byte == pytest.approx(0.5 / 0.6931471805599453)


@pytest.mark.parametrize(
    ("first", "count", "reason"),
    [(0, 3, "second score"), (3, 2, "second score"), (5, 2, "gap"), (4, 7, "stream has 10")],
)
def test_wrong_posts(first, count, reason):
    ledger = Ledger(TOKENS)
    ledger.post(0, nats(4), "a")
    with pytest.raises(LegalityError, match=reason):
        ledger.post(first, nats(count), "a")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_impossible_nats(value):
    with pytest.raises(LegalityError, match="finite and not negative"):
        Ledger(TOKENS).post(0, torch.tensor([0.5, value]), "a")


def test_no_score_of_a_part():
    ledger = Ledger(TOKENS)
    ledger.post(0, nats(9), "a")
    with pytest.raises(LegalityError, match="9 of 10"):
        ledger.score(TABLE)


@pytest.mark.parametrize(("first", "count"), [(0, 5), (2, 3), (9, 1), (-1, 2)])
def test_no_text_before_its_score(first, count):
    ledger = Ledger(TOKENS)
    ledger.post(0, nats(4), "a")
    with pytest.raises(LegalityError, match="only 4 are scored"):
        ledger.posted(first, count)


def test_handed_out_text_is_a_copy():
    ledger = finished()
    ledger.posted(0, 3).ids.zero_()
    assert torch.equal(TOKENS.ids, torch.arange(11))


def test_replay_gives_the_same_score():
    ledger = finished()
    assert replay(ledger.events, ledger.nats, TOKENS).score(TABLE) == ledger.score(TABLE)


@pytest.mark.parametrize("change", ["nats", "weights", "order", "drop", "positions"])
def test_replay_shows_every_change(change):
    ledger = finished()
    events, values = copy.deepcopy(ledger.events), ledger.nats.clone()
    if change == "nats":
        values[7] -= 0.1
    elif change == "weights":
        events[0]["weights"] = "c"
    elif change == "order":
        events[0], events[1] = events[1], events[0]
    elif change == "drop":
        del events[1]
    else:
        events[1]["count"] = 3
    with pytest.raises(LegalityError):
        replay(events, values, TOKENS)


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 64))
def test_windows_cover_every_target_once(targets, window, stride):
    if stride > window:
        with pytest.raises(LegalityError, match="skipped"):
            list(sliding_windows(targets, window, stride))
        return
    windows = list(sliding_windows(targets, window, stride))
    assert [target for w in windows for target in w.scored] == list(range(targets))
    assert all(w.start >= 0 and w.length <= window and w.start + w.length <= targets for w in windows)
    assert all(w.first >= w.length - stride for w in windows[1:]), "a later window scores at most a stride"
