"""Any model -> the same model with gates."""
