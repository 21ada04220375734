"""Rules that may change the model between scores, from text that has been scored."""
