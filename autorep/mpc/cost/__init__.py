"""What a program costs, in closed form (numpy only)."""
