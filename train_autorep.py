"""Take a trained network and a ReLU budget; search which ReLUs to keep, and make the others polynomials."""

from autorep.cli.main import main

if __name__ == "__main__":
    main("autorep")
