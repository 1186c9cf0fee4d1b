"""The exported artifact (numpy only)."""
