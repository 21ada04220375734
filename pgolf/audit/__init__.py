"""The auditor: facts of a record first, then the verdicts of a named policy."""
