"""The commands of two hosts: `keys`, `serve` and `ask`."""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from autorep.machine.files import user_path
from autorep.mpc.bundle.files import load_graph, load_images, samples_file
from autorep.mpc.bundle.graph import Graph
from autorep.mpc.engines import ENGINES, TLS_LINK
from autorep.mpc.parties.addresses import LAST_PORT
from autorep.mpc.parties.answers import Answers
from autorep.mpc.parties.asking import Question, ask_server
from autorep.mpc.parties.channel import Address
from autorep.mpc.parties.keys import CERTIFICATE, load_identity, make_keys
from autorep.mpc.parties.negotiation import LARGEST_BATCH, Offer
from autorep.mpc.parties.service import Service
from autorep.mpc.parties.tls import Identity
from autorep.mpc.ring.automatic import format_line
from autorep.mpc.ring.fixed_point import TRUNCATIONS, FixedPoint
from autorep.mpc.ring.flags import add_format_flags, chosen_format, positive, refuse_unfit_format
from autorep.mpc.ring.prediction import MARGIN
from autorep.mpc.tables import megabytes

# Whose parties are a server and a client alone.
TWO_PARTIES = tuple(name for name, engine in ENGINES.items() if engine.parties == 2)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the three commands to the parser of `python -m autorep.mpc`."""
    keys = commands.add_parser("keys", help="make a party's certificate and private key", allow_abbrev=False)
    keys.add_argument("--out", type=user_path, required=True, help="the folder to write")
    keys.add_argument("--days", type=positive, default=365, help="how long the certificate is valid")
    keys.set_defaults(command=_keys)
    _serve_arguments(commands.add_parser("serve", help="answer clients on other hosts", allow_abbrev=False))
    _ask_arguments(commands.add_parser("ask", help="ask a server on another host about images", allow_abbrev=False))


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=user_path, help="needs graph.json, public.npz and model.npz alone")
    parser.add_argument("--listen", type=_address, required=True, metavar="HOST:PORT",
                        help="where clients come to; the two (spu-cheetah) or three ports after it are used too")
    parser.add_argument("--engine", choices=TWO_PARTIES, default="spu-semi2k")
    _identity_arguments(parser)
    add_format_flags(parser)
    parser.set_defaults(command=_serve)


def _ask_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=user_path, help="needs graph.json and public.npz alone, and samples.npz without "
                                                       "--images")
    parser.add_argument("--connect", type=_address, required=True, metavar="HOST:PORT", help="where the server listens")
    parser.add_argument("--images", type=user_path, metavar="FILE",
                        help=".npy of images [N, C, H, W] as the network takes them, or .npz of images and the logits "
                             "to compare with; default: the bundle's samples")
    parser.add_argument("--num", type=positive, help="only the first so many images; default: all")
    parser.add_argument("--batch", type=positive, default=1, help="images per query")
    parser.add_argument("--engine", choices=TWO_PARTIES, help="accept no other; default: the one of the server")
    parser.add_argument("--listen", type=_address, metavar="HOST:PORT",
                        help="where the server reaches this host, at this port and with spu-semi2k the next; default: "
                             "any free ports at the address that dials")
    _identity_arguments(parser)
    parser.set_defaults(command=_ask)


def _identity_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", type=user_path, metavar="DIR", help="this party's folder, made by keys")
    parser.add_argument("--peer", type=user_path, metavar="FILE", help=f"the other party's {CERTIFICATE}")


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not host or ":" in host or not port.isdecimal() or not 1 <= int(port) <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"invalid {text!r}: expected HOST:PORT such as 192.168.1.5:7000, a name or an "
                                         "IPv4 address")
    return host, int(port)


def _identity(args: argparse.Namespace) -> Identity:
    if args.key is None or args.peer is None:
        raise ValueError("two hosts need certificates: make one on each by python -m autorep.mpc keys --out DIR, give "
                         f"its {CERTIFICATE} to the other, and pass --key DIR --peer FILE_OF_THE_OTHER")
    return load_identity(args.key, args.peer)


def _keys(args: argparse.Namespace) -> None:
    fingerprint = make_keys(args.out, args.days)
    print(f"{args.out / CERTIFICATE}: give it to the other party, who passes it as --peer; valid for {args.days} days\n"
          f"its SHA-256 is {fingerprint}\nthe private key beside it stays here")


def _serve(args: argparse.Namespace) -> None:
    identity, graph = _identity(args), load_graph(args.bundle)
    fixed, line = chosen_format(args, graph, args.engine)
    refuse_unfit_format([graph], args.engine, fixed)
    service = Service(args.listen, args.bundle.resolve(), graph, args.engine, fixed, identity)
    print(line)
    print(f"serving {args.bundle} under {args.engine} at {args.listen[0]}:{args.listen[1]} until Ctrl-C", flush=True)
    try:
        service.run()
    except (SystemExit, KeyboardInterrupt):  # how a service is meant to end
        print("stopped", flush=True)


def _ask(args: argparse.Namespace) -> None:
    identity, graph = _identity(args), load_graph(args.bundle)
    images_file = args.images or samples_file(args.bundle)
    images, expected = load_images(images_file, graph)
    if args.listen and args.listen[0] == "0.0.0.0":
        raise ValueError("invalid --listen 0.0.0.0: expected the address at which the server reaches this host")
    num = args.num or len(images)
    if num > len(images):
        raise ValueError(f"invalid num={num}: expected at most {len(images)}, the images that there are")
    if args.batch > min(num, LARGEST_BATCH):
        raise ValueError(f"invalid batch={args.batch}: expected at most {min(num, LARGEST_BATCH)}")
    _check_range(images[:num], graph)

    def accept(offer: Offer) -> None:
        if args.engine not in (None, offer.engine):
            raise ValueError(f"the server uses {offer.engine}, and this client accepts {args.engine} alone")
        refuse_unfit_format([graph], offer.engine, offer.fixed)
        print(format_line(graph, offer.fixed))
        print(f"asking about {num} images under {offer.engine}\nTRUST: {ENGINES[offer.engine].trust} {TLS_LINK}",
              flush=True)

    question = Question(args.bundle, graph, images_file, num, args.batch, identity, args.listen)
    _print_answers(ask_server(args.connect, question, accept), None if expected is None else expected[:num])


def _check_range(images: np.ndarray, graph: Graph) -> None:
    """Refuse images that no usual format holds, before the server can notice how their party fails."""
    largest, recorded = float(np.abs(images).max()), max(map(abs, graph.ranges[graph.input_name]))
    limit = max(FixedPoint.of(truncation).limit for truncation in TRUNCATIONS)
    if largest >= limit:
        raise ValueError(f"invalid images: they reach {largest:.4g}, expected values below {limit:.4g}; normalise them "
                         "as in training")
    if largest > MARGIN * recorded:
        print(f"warning: the images reach {largest:.4g}, those that the network was exported with {recorded:.4g}: are "
              "they normalised as in training?", file=sys.stderr)


def _print_answers(answers: Answers, expected: np.ndarray | None) -> None:
    top = answers.logits.argmax(1)
    for i, label in enumerate(top):
        print(f"image {i}: class {label}, logit {answers.logits[i, label]:.4f}")
    agreement = error = None
    if expected is not None:
        agreement = float(np.mean(top == expected.argmax(1)))
        error = float(np.abs(answers.logits - expected).max())
        print(f"the class of the reference logits on {100 * agreement:.1f} %; they differ by at most {error:.1e}")
    count_name = ENGINES[answers.engine].count_name
    print(f"a query: {answers.seconds:.3f} s (median), {megabytes(answers.num_bytes)} MB in both directions, "
          f"{answers.rounds} {count_name}; set-up apart, with a warm-up query: {answers.setup_seconds:.1f} s and "
          f"{megabytes(answers.setup_bytes)} MB")
    print(json.dumps({"engine": answers.engine, "images": len(top), "classes": top.tolist(), "agreement": agreement,
                      "max_error": error, "seconds": answers.seconds, "bytes": answers.num_bytes,
                      "rounds": answers.rounds, "setup_seconds": answers.setup_seconds,
                      "setup_bytes": answers.setup_bytes}))
