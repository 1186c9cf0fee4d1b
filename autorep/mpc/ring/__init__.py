"""The secure program on 64-bit integers (numpy only)."""
