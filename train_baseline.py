"""Train a dense network with its ReLUs: the baseline and teacher of an AutoReP run."""

from autorep.cli.main import main

if __name__ == "__main__":
    main("baseline")
