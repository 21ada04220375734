"""What a forger does to a record, and the checks that then fail.

A test takes an honest record, changes what a forger would, seals all manifests again and tells the new figures wherever
they are shown. Hashes then prove nothing: only what follows from something else is evidence.
"""

import json
import re

from evaluation.ledger import GENESIS, link
from pgolf.artifact import code_bytes
from pgolf.audit.policy import judge, load_policy
from pgolf.audit.records import read_record
from pgolf.corpus.splits import file_sha256
from pgolf.workdir import MANIFEST, file_hashes

STAGES = {"training": "checkpoint", "quantization": "artifact", "evaluation": "scores"}
LOADING = ("B1", "loading reads what is counted")
SUMS, SCORINGS = ("C7", "scores follow from their sums"), ("C6", "scorings of the recipe")
PLAN, LOG = ("C3", "scored as the recipe plans"), ("E3", "log and manifests agree")
TOLD = ("E2", "card, submission and scores agree")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_in(path, *keys, to):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    edit(path, change)


def seal(record):
    """Make every hash anew: recipe, what stages wrote and read, their manifests, and the record's own."""
    recipe = file_sha256(record / "recipe.json")
    for stage in STAGES:

        def change(manifest, stage=stage):
            manifest["recipe_sha256"] = recipe
            if stage != "training":
                manifest["outputs"] |= {
                    name: file_sha256(record / name) for name in manifest["outputs"] if (record / name).is_file()
                }
            if stage == "evaluation":
                manifest["inputs"]["artifact/model.safetensors"] = file_sha256(record / "model.safetensors")

        edit(record / "manifests" / f"{stage}.json", change)
    set_in(record / "submission.json", "pgolf", "recipe_sha256", to=recipe)
    stages = {
        f"{folder}/{MANIFEST}": file_sha256(record / "manifests" / f"{stage}.json") for stage, folder in STAGES.items()
    }
    edit(record / MANIFEST, lambda manifest: manifest.update(inputs=stages, outputs=file_hashes(record)))
    return record


def tell(record):
    """Show the figures of scores.json and the sizes of the files wherever a record shows them."""
    scores = json.loads((record / "scores.json").read_text())["scores"]
    size = code_bytes(record) + (record / "model.safetensors").stat().st_size
    best, entry = list(scores.values())[-1], record / "submission.json"
    old = json.loads(entry.read_text())["val_bpb"]
    said = {"val_bpb": best["bits_per_byte"], "val_loss": best["nats_per_token"], "bytes_total": size}
    edit(entry, lambda e: e.update(said | {"bytes_code": code_bytes(record)}))
    for path in (record / "bytes.json", record / "manifests" / "quantization.json"):
        edit(path, lambda content: content.update(total_bytes=size, code_bytes=code_bytes(record)))

    def rows(table):
        table["checks"][0]["value"] = size
        for row, score in zip(table["stages"][2:], scores.values(), strict=False):
            row.update(bits_per_byte=score["bits_per_byte"], nats_per_token=score["nats_per_token"], bytes=size)

    edit(record / "stages.json", rows)
    card = record / "README.md"
    text = card.read_text().replace(f"{old:.4f} bits", f"{best['bits_per_byte']:.4f} bits")
    shown = reversed(list(scores.values()))
    text = re.sub(r"(?<= value: )[\d.]+", lambda _: str(round(next(shown)["bits_per_byte"], 6)), text)
    card.write_text(text)
    return record


def verdicts(record, policy="strict"):
    facts, hardware = read_record(record)
    return {(v.fact.rule, v.fact.name): v.verdict for v in judge(facts, load_policy(policy), hardware)}


def failing(record):
    """The checks that fail once everything is sealed again."""
    return {check for check, verdict in verdicts(seal(record)).items() if verdict == "FAIL"}


def relink(record, name, spans):
    """Write a ledger anew whose chain matches: (kind, first, count, weights) each."""
    previous, lines = GENESIS, []
    for kind, first, count, weights in spans:
        event = {"event": kind, "first": first, "count": count, "weights": weights}
        previous = link(previous, event)
        lines.append(json.dumps(event | {"chain": previous}) + "\n")
    (record / f"ledger.{name}.jsonl").write_text("".join(lines))
