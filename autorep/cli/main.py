"""The command line of both scripts."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from autorep.cli.configuration import config_from, idle_flags
from autorep.cli.flags import defaults
from autorep.cli.parser import build_parser
from autorep.cli.wording import in_flags
from autorep.config import RunConfig
from autorep.data.datasets import dataset_info
from autorep.evaluate import report_checkpoint
from autorep.machine.distributed import destroy_process_group, is_main
from autorep.machine.files import to_json_text, user_path
from autorep.machine.memory import keep_freed_memory_
from autorep.machine.terminal import accept_any_text
from autorep.runs.config_file import to_json
from autorep.runs.folder import RunFolder
from autorep.training.build import planned_price, price_model, relu_total
from autorep.training.fit import fit
from autorep.training.resuming import find_checkpoint


def main(kind: str, argv: Sequence[str] | None = None) -> None:
    """Parse, build the configuration, run; user errors end with one line on stderr and exit code 2.

    Ctrl-C where no training step would save ends it with one line, too, and exit code 130.
    """
    parser = build_parser(kind)
    given = vars(parser.parse_args(argv))
    accept_any_text()
    keep_freed_memory_()
    try:
        with warnings.catch_warnings():  # which brings the process's own way to show them back
            warnings.showwarning = _show_warning
            _run(kind, given)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {in_flags(error)}\n")
    except FloatingPointError as error:
        parser.exit(1, f"{parser.prog}: error: {in_flags(error)}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; a run resumes from its last checkpoint with --resume auto\n")
    finally:
        destroy_process_group()


def _run(kind: str, given: dict[str, Any]) -> None:
    if given.pop("evaluate", False):
        _evaluate(kind, given)
        return
    dry_run = given.pop("dry_run", False)
    config = config_from(kind, given)
    for name, why in idle_flags(given, config).items():
        warnings.warn(f"--{name} has no effect: {why}", stacklevel=1)
    if dry_run:
        _print_plan(config)
        return
    summary = fit(config)
    if is_main():
        _print_summary(summary, config)


def _evaluate(kind: str, given: dict[str, Any]) -> None:
    if "checkpoint_path" not in given:
        raise ValueError("--evaluate needs --checkpoint_path")
    for name in given.keys() - {"checkpoint_path", "data_path", "gpu", "batch_size", "precision"}:
        warnings.warn(f"--{name} has no effect: --evaluate takes the run's own configuration", stacklevel=1)
    v = defaults(kind) | given
    data_path = given.get("data_path")
    report_checkpoint(user_path(v["checkpoint_path"]), data_path=data_path and user_path(data_path), gpu=v["gpu"],
                      batch_size=v["batch_size"], precision=v["precision"])


def _print_plan(config: RunConfig) -> None:
    print(to_json(config))
    find_checkpoint(config, RunFolder.of(config))  # what the run would refuse
    info = dataset_info(config.data.dataset, config.data.data_path)
    relus = relu_total(config, info)
    print(f"run folder: {RunFolder.of(config)}\nReLUs per image: {relus.total:,} in {len(relus.layers)} layers")
    if config.budget:
        price = price_model(config, info) if config.budget.price else planned_price(config, info)
        if price is not None:
            print(price)


def _print_summary(summary: dict[str, Any], config: RunConfig) -> None:
    print(to_json_text(summary))
    if not summary["finished"]:
        print(f"stopped at step {summary['step']} of {summary['num_steps']}: resume with --resume auto")
    print(f"run folder: {RunFolder.of(config)}")


def _show_warning(message: Warning | str, category: type, filename: str, lineno: int, file: Any = None,
                  line: str | None = None) -> None:
    """One line, without the place in our source that means nothing to users."""
    print(f"warning: {in_flags(message)}", file=sys.stderr, flush=True)
