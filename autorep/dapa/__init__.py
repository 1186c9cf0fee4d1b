"""Distribution-aware polynomial approximation (DaPa): record activations, fit coefficients."""
