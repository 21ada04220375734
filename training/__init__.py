"""Training: (model, train tokens, config) to weights. Knows no paths, corpora or Hub."""
