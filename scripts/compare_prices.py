"""Is a network trained for a link faster on it than with all its ReLUs? A table, and a JSON line."""

import json
import sys
from pathlib import Path

LINKS = ("loopback", "lan", "wan")


def main(results: Path) -> None:
    """Read what `autorep.mpc run --compare` wrote for the network with few ReLUs and for those with a price."""
    print(f"\n{'seconds an image, SEMI2K':<26}{'all ReLU':>10}{'few ReLUs':>11}{'for this link':>15}")
    faster = {}
    for link in LINKS:
        count, price = (json.loads((results / name / f"spu-semi2k-{link}" / "pi.json").read_text())["variants"]
                        for name in ("count", f"price-{link}"))
        every, few, own = (found["seconds"]["median"] for found in (price["all_relu"], count["trained"],
                                                                    price["trained"]))
        faster[link] = own < every
        print(f"{link:<26}{every:>10.3f}{few:>11.3f}{own:>15.3f}"
              + ("" if own < every else "   this network is not faster: its layers are too small for this link"))
    print(json.dumps({"faster_than_all_relu": faster}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
