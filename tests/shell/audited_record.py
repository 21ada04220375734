"""The verdicts on a record as if it ran on the challenge's machine, and ledgers to put into it."""

import json

from evaluation.ledger import GENESIS, link
from pgolf.audit.policy import judge, load_policy
from pgolf.audit.records import read_record

JUDGED = "8 × NVIDIA H100 80GB HBM3"


def verdicts(record, policy="strict", hardware=JUDGED):
    return {(v.fact.rule, v.fact.name): v.verdict for v in judge(read_record(record)[0], load_policy(policy), hardware)}


def posted(*spans):
    """The events of a ledger: SCORE and UPDATE, each (first, count), with a chain that matches."""
    events, previous = [], GENESIS
    for kind, first, count in spans:
        event = {"event": kind, "first": first, "count": count, "weights": "w"}
        events.append(event | {"chain": (previous := link(previous, event))})
    return events


def kept(record, events, name="sliding"):
    (record / f"ledger.{name}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
