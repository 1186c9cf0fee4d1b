"""The gate: per pixel, a ReLU or a polynomial."""
