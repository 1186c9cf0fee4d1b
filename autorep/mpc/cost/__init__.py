"""The price of a program, in closed form (numpy only)."""
