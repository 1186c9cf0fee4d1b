"""AutoReP: take a trained CNN and a ReLU budget, give back a network in which all other ReLUs are polynomials."""
