"""Optimisers that torch does not have in the form the game needs."""
