"""How tests alter a record, and what verifying then finds in it."""

import json

from pgolf.verify import verify


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def found(record, asked):
    return {finding.name: finding for finding in verify(record, asked)}
