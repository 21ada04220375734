"""The model package: what a Hub repository of a pgolf model carries, and nothing else."""
