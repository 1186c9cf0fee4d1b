"""Tables of runs under an engine, as scripts/mpc_results.py writes them: a section each."""

from __future__ import annotations

from pathlib import Path

from autorep.machine.files import read_table
from autorep.mpc.tables import TITLES
from autorep.report.page import Section
from autorep.report.tables import NOTHING, Table

_COLUMNS = ("arch", "weights", "dataset", "degree", "protocol", "net", "variant", "relu_kept", "seconds_median",
            "bytes_to_client", "bytes_to_server", "rounds", "rounds_are", "images", "agreement")


def is_engine_table(path: Path) -> bool:
    """Whether a table holds runs under an engine rather than trained networks. Raises ValueError if it is damaged."""
    return path.is_file() and any("seconds_median" in row for row in read_table(path))


def engine_section(path: Path) -> Section:
    """The measured runs of a table, in its order.

    Raises:
        ValueError: the table lacks a column, or a cell is not a number.
    """
    found = read_table(path)
    if missing := [name for name in _COLUMNS if name not in found[0]]:
        raise ValueError(f"{path} has no column {', '.join(missing)}: a table of runs under an engine is what "
                         "scripts/mpc_results.py writes")
    rows = []
    for line, cells in enumerate(found, 2):
        try:
            rows.append(_cells(cells))
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {line}: {error}; the table is damaged or cut off") from error
    header = ("network", "engine", "link", "masking", "truncation", "images a query", "degree", "ReLUs", "seconds",
              "predicted", "MB", "rounds or messages", "images with the class of plaintext")
    table = Table("One query, measured under the engine: medians of seconds, bytes of all parties", header, tuple(rows),
                  num_text=5)
    return Section(f"Private inference measured: {path.stem}", "", (table,), (), ())


def _cells(row: dict[str, str]) -> tuple[str, ...]:
    network = f"{row['arch']}, {row['weights']} weights"
    predicted = row.get("seconds_predicted") or ""
    sent = (row["bytes_to_client"], row["bytes_to_server"], row.get("bytes_from_helper") or 0)
    megabytes = sum(map(float, sent)) / 1e6
    rounds = f"{row['rounds']} {row['rounds_are']}" if row["rounds"] else NOTHING
    # Tables that are older than a choice were made without it.
    return (network, row["protocol"], row["net"], TITLES[row["variant"]], row.get("truncation") or "exact",
            row.get("batch") or "1", row["degree"] or NOTHING, f"{int(row['relu_kept']):,}",
            f"{float(row['seconds_median']):.2f}",
            f"{float(predicted):.2f}" if predicted else NOTHING, f"{megabytes:,.1f}", rounds,
            f"{100 * float(row['agreement']):.1f} % of {int(row['images'])}")
