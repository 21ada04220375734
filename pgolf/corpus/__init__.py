"""Corpora: text or shards in, token shards, a tokenizer and a byte table out."""
