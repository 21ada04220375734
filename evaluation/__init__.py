"""Evaluation: (artifact model, validation tokens, config) to a ledger and a score."""
