"""Speed and memory as ratios against a plain ReLU, measured in the same run: `python -m benchmarks.gate`."""
