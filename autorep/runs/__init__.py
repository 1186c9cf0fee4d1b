"""A run folder: where it is, what explains the run, its checkpoints."""
