"""`python -m autorep.mpc COMMAND`: private inference of a trained network."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autorep.machine.files import user_path, write_atomically
from autorep.machine.terminal import accept_any_text
from autorep.mpc.bundle.files import load_graph, load_samples
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.cost.estimate import estimate, estimate_table
from autorep.mpc.cost.local import RATES_FILE, load_rates, save_rates
from autorep.mpc.engines import ENGINES, Network, parse_network
from autorep.mpc.parties.commands import add_commands
from autorep.mpc.parties.fitting import fit_reports
from autorep.mpc.parties.framing import PeerError
from autorep.mpc.parties.launch import RunError, run_task
from autorep.mpc.parties.report import print_report, report_document
from autorep.mpc.parties.results import collect
from autorep.mpc.parties.task import Task
from autorep.mpc.ring.agreement import LEAST_AGREEMENT, check_format
from autorep.mpc.ring.automatic import format_line
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.flags import add_format_flags, chosen_format, named_format, positive, refuse_unfit_format
from autorep.mpc.tables import TITLES

_IMAGES = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Bad input, a bad bundle and a failed run give one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    accept_any_text()
    try:
        args.command(args)
    except (ValueError, OSError, RunError, PeerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m autorep.mpc", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    _export_arguments(commands.add_parser("export", help="from a checkpoint to a bundle (needs torch)",
                                          allow_abbrev=False))
    _evaluate_arguments(commands.add_parser("evaluate", help="accuracy under the engine's arithmetic on the whole test "
                                                             "set, without any engine (needs torch); without "
                                                             "--fraction_bits with the fewest that keep 99.9 %% of "
                                                             "the classes",
                                            allow_abbrev=False))
    _run_arguments(commands.add_parser("run", help="run a bundle in a process per party", allow_abbrev=False))
    add_commands(commands)
    _cost_arguments(commands.add_parser("cost", help="estimate without any engine", allow_abbrev=False))
    _rates_arguments(commands.add_parser("rates", help="fit how fast this machine computes and waits to runs",
                                         allow_abbrev=False))
    _onnx_arguments(commands.add_parser("onnx", help="write a bundle as ONNX, weights included", allow_abbrev=False))
    return parser


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=user_path, required=True, help="a last.pth.tar or best.pth.tar")
    parser.add_argument("--out", type=user_path, required=True, help="the folder to write")
    parser.add_argument("--data_path", type=user_path, help="folder of the data set; default: where the run had it")
    parser.add_argument("--images", type=positive, default=128,
                        help="test images to store in the bundle, if there are as many")
    add_format_flags(parser)
    parser.set_defaults(command=_export)


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=user_path)
    parser.add_argument("--data_path", type=user_path, help="folder of the data set")
    parser.add_argument("--images", type=positive, help="only the first so many test images; default: all")
    add_format_flags(parser)
    parser.set_defaults(command=_evaluate)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=user_path)
    parser.add_argument("--engine", choices=tuple(ENGINES), default="spu-semi2k")
    parser.add_argument("--net", default="loopback",
                        help="loopback, lan, wan, or DELAY_MS:MBIT (one way, each direction)")
    parser.add_argument("--images", type=positive,
                        help=f"how many of the bundle's images to ask about; default: {_IMAGES}, if there are as many")
    parser.add_argument("--repeat", type=positive, default=3, help="the least number of timed queries")
    parser.add_argument("--batch", type=positive, default=1, help="images per query")
    parser.add_argument("--compare", action="store_true", help="also with all ReLUs kept and with none")
    parser.add_argument("--port", type=int,
                        help="first of the ports to use, three for spu-semi2k, two for spu-cheetah, four for "
                             "spu-aby3; default: any free")
    parser.add_argument("--out", type=user_path,
                        help="folder for pi.json and the logs; default: a temporary one for the logs")
    add_format_flags(parser)
    parser.set_defaults(command=_run)


def _cost_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=user_path)
    parser.add_argument("--net", action="append", help="as for run, may be repeated; default: loopback, lan and wan")
    parser.add_argument("--layers", action="store_true", help="one row per layer")
    add_format_flags(parser)
    parser.set_defaults(command=_cost)


def _rates_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reports", type=user_path, nargs="+", metavar="PI_JSON",
                        help="what run --compare wrote, on loopback and on other links")
    parser.add_argument("--machine", required=True, help="what the table calls this machine")
    parser.add_argument("--out", type=user_path, default=RATES_FILE, help="default: the table that cost reads")
    parser.set_defaults(command=_rates)


def _onnx_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=user_path)
    parser.add_argument("--form", choices=("mask", "gather"), default="mask",
                        help="both branches everywhere and Where, or kept and dropped pixels gathered apart")
    parser.add_argument("--out", type=user_path, help="the file to write; default: BUNDLE/model-FORM.onnx")
    parser.set_defaults(command=_onnx)


def _export(args: argparse.Namespace) -> None:
    try:
        from autorep.mpc.export.to_bundle import export_checkpoint
    except ImportError as error:
        raise ValueError(f"export needs torch ({error}): use the environment .venv, made by bash "
                         "scripts/setup_env.sh") from error
    for problem in export_checkpoint(args.checkpoint, args.out, data_path=args.data_path, num_images=args.images,
                                     fixed=named_format(args)):
        print(f"warning: {problem}", file=sys.stderr)
    graph = load_graph(args.out)
    if graph.meta["left_out"]:
        print(f"the {graph.meta['left_out']} at the end is left out: it does not change the predicted class")
    print(f"{args.out}: {len(graph.ops)} operations, {len(load_samples(args.out, graph).images)} images")


def _evaluate(args: argparse.Namespace) -> None:
    try:
        from autorep.mpc.export.whole_set import evaluate_bundle
    except ImportError as error:
        raise ValueError(f"evaluate needs torch ({error}): use the environment .venv, made by bash "
                         "scripts/setup_env.sh") from error
    if args.fraction_bits is None and args.coefficient_bits is not None:
        raise ValueError(f"--coefficient_bits {args.coefficient_bits} needs --fraction_bits: without it both are "
                         "searched for")
    fixed, line = chosen_format(args, load_graph(args.bundle), "spu-semi2k")
    searched = args.fraction_bits is None and (args.truncation is not None or fixed.truncation == "exact")
    if not searched:
        print(line)
    found = evaluate_bundle(args.bundle, data_path=args.data_path, num_images=args.images,
                            fixed=None if searched else fixed, truncation=fixed.truncation)
    print(found)
    if found.agreement < 100 * LEAST_AGREEMENT:
        other = "more --fraction_bits" if found.fixed.truncation == "exact" else "--truncation exact"
        print(f"warning: fewer than {100 * LEAST_AGREEMENT:g} % keep their class; try {other}, here, for run and for "
              "serve", file=sys.stderr)


def _run(args: argparse.Namespace) -> None:
    network, graph = parse_network(args.net), load_graph(args.bundle)
    samples = load_samples(args.bundle, graph)
    args.images = args.images or min(_IMAGES, len(samples.images))
    if args.images > len(samples.images):
        raise ValueError(f"invalid images={args.images}: expected at most the {len(samples.images)} of the bundle; ask "
                         "about fewer, or export more")
    if args.batch > args.images:
        raise ValueError(f"invalid batch={args.batch}: expected at most {args.images}, the images to ask about; raise "
                         "--images")
    fixed, line = chosen_format(args, graph, args.engine)
    graphs = {masking: with_masking(graph, masking) for masking in (TITLES if args.compare else ("trained",))}
    refuse_unfit_format(graphs.values(), args.engine, fixed)
    print(line)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="autorep-mpc-") as temporary:
        figures = {}
        for masking, masked in graphs.items():
            task = _run_masking(args, masking, network, fixed, args.out or Path(temporary))
            figures[masking] = collect(task, masked, samples)
        document = report_document(str(args.bundle), graph, network, task, load, figures)
        if args.out:
            write_atomically(args.out / "pi.json", json.dumps(document, indent=1))
        print_report(document)


def _run_masking(args: argparse.Namespace, masking: str, network: Network, fixed: FixedPoint, logs: Path) -> Task:
    queries = max(-(-args.images // args.batch), args.repeat)
    print(f"{TITLES[masking]}: {queries} queries of {args.batch} under {args.engine}, {network} ...", flush=True)
    return run_task(str(args.bundle), masking, args.engine, network, fixed, images=args.images, batch=args.batch,
                    queries=queries, port=args.port, out=logs / masking)


def _cost(args: argparse.Namespace) -> None:
    graph = load_graph(args.bundle)
    fixed, line = chosen_format(args, graph, "spu-semi2k")
    networks = [parse_network(text) for text in args.net or ("loopback", "lan", "wan")]
    exact = FixedPoint.of("exact", args.fraction_bits, args.coefficient_bits)  # of the other engines
    document = {}
    for name in TITLES:
        masked = with_masking(graph, name)
        priced = {each: estimate(masked, each, networks) for each in {fixed, exact}}
        document[name] = {engine: priced[fixed if each.local_truncation else exact][engine]
                          for engine, each in ENGINES.items()}
    print(line)
    print(estimate_table(document, args.layers))
    for problem in check_format(graph, fixed):
        print(f"warning: {problem}", file=sys.stderr)
    if fixed != exact:
        others = [name for name, engine in ENGINES.items() if not engine.local_truncation]
        print(f"{', '.join(others)}: {format_line(graph, exact, 'they have no other')}")
    print(json.dumps({name: {engine: {k: v for k, v in found.items() if k != "by_layer"}
                             for engine, found in engines.items()} for name, engines in document.items()}))


def _rates(args: argparse.Namespace) -> None:
    rates = fit_reports(args.machine, args.reports, load_rates(args.out) if args.out.exists() else {})
    save_rates(args.out, rates)
    for each in rates:
        print(f"{each.engine}: {each.seconds_per}; {each.per_round * 1e3:.2f} ms a round")


def _onnx(args: argparse.Namespace) -> None:
    try:
        from autorep.mpc.export.to_onnx import export_onnx
    except ImportError as error:
        raise ValueError(f"onnx needs two more packages ({error}): pip install onnx onnxruntime") from error
    path = args.out or args.bundle / f"model-{args.form}.onnx"
    error = export_onnx(args.bundle, path, args.form)
    print(f"{path}: onnxruntime gives the reference logits to {error:.1e} of the largest")


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    for stopping in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        # SystemExit ends both parties and removes temporary files. A signal that nohup ignores stays ignored.
        if signal.getsignal(stopping) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(stopping, _stop)
    sys.exit(main())
