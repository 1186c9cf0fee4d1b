"""Write reports of private inference to one table: python scripts/mpc_results.py OUT.csv PI_JSON...

Each report has a file "commit" beside it, with the commit that measured it.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.parties.fitting import reported_network
from autorep.mpc.parties.report import REPORT_VERSION, number_format, reported_graph
from autorep.mpc.tables import error_text

FIELDS = (
    "arch", "weights", "dataset", "degree", "engine", "protocol", "net", "delay_ms", "mbit", "variant", "relu_kept",
    "layers_with_relu", "seconds_median", "seconds_min", "seconds_max", "queries", "bytes_to_client",
    "bytes_to_server", "rounds", "rounds_are", "setup_seconds", "setup_bytes", "images", "agreement",
    "max_error", "accuracy", "fraction_bits", "spu", "cpus", "load_before", "commit", "seconds_predicted",
    "bytes_from_helper", "truncation", "batch", "offline_bytes",
)


def rows(path: Path) -> list[dict]:
    """One row per masking of a report."""
    report, commit = json.loads(path.read_text()), path.with_name("commit").read_text().strip()
    if report["report_version"] != REPORT_VERSION:
        raise ValueError(f"{path} is a report of version {report['report_version']}: expected {REPORT_VERSION}; run "
                         "the bundle again")
    graph, network = reported_graph(report), reported_network(report)
    fixed, found = number_format(report), []
    for masking, figures in report["variants"].items():
        seconds, setup = figures["seconds"], figures["setup"]
        expected = estimate(with_masking(graph, masking), fixed, [network])[report["engine"]]
        predicted = expected["seconds"][network.name]
        found.append({
            **{key: report["meta"].get(key) for key in ("arch", "weights", "dataset", "degree")},
            "engine": report["engine"], "protocol": report["protocol"], "net": report["net"]["name"],
            "delay_ms": report["net"]["delay_ms"], "mbit": report["net"]["mbit"], "variant": masking,
            "relu_kept": figures["relu_kept"], "layers_with_relu": figures["layers_with_relu"],
            "seconds_median": round(seconds["median"], 4), "seconds_min": round(seconds["min"], 4),
            "seconds_max": round(seconds["max"], 4), "queries": len(seconds["all"]),
            # With a helper, server and client send to it too.
            "bytes_to_client": figures["bytes"]["server"], "bytes_to_server": figures["bytes"]["client"],
            "bytes_from_helper": figures["bytes"].get("helper", ""), "rounds": figures["rounds"],
            "rounds_are": report["counts"], "setup_seconds": round(setup["seconds"], 2),
            "setup_bytes": sum(setup["sent"].values()), "images": figures["images"],
            "agreement": figures["agreement"], "max_error": error_text(figures["max_error"]),
            "accuracy": figures["accuracy"], "fraction_bits": report["fraction_bits"],
            "truncation": report["truncation"], "batch": report["batch"], "offline_bytes": figures["offline_bytes"],
            "spu": figures["versions"]["spu"], "cpus": report["host"]["cpus"],
            "load_before": round(report["host"]["load_before"], 1), "commit": commit,
            # By the closed form for the link, and the table of rates for computing and for waiting.
            "seconds_predicted": "" if predicted is None or report["batch"] > 1 else round(predicted, 4),
        })
    return found


def main(out: str, reports: list[str]) -> None:
    """Write the table `out`, a row for each report."""
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for path in reports:
            writer.writerows(rows(Path(path)))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
