"""Which ReLUs stay."""
