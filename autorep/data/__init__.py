"""Data sets as arrays, batched augmentation, and batches that are a pure function of (seed, epoch, step)."""
