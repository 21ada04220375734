"""Quantisation: (weights, calibration batches, config) to integers and scales."""
