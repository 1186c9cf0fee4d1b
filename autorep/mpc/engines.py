"""The engines and networks that a run may name, and what each engine asks its users to trust."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

# Who takes part, by rank. The helper has neither weights nor images and learns nothing: it only computes.
ROLES = ("server", "client", "helper")
SERVER, CLIENT, HELPER = range(3)


@dataclass(frozen=True)
class Engine:
    """A protocol.

    Args:
        parties: how many compute together: the first of `ROLES`.
        opens_operands: a matrix product sends both operands masked, so its price is theirs, and a product by weights
            that were sent before sends only the other operand.
        local_truncation: it can truncate without a round (see `FixedPoint`).
        private_weights: the server's weights stay in the clear on the server.
        lanes: with two, polynomials are computed while comparisons are under way, so a layer with both takes the rounds
            of the longer of the two. An engine has only one if every lane would pay for its own set-up.
        count_name: what its messages are called in tables.
        trust: what its users have to trust.
    """

    name: str
    protocol: str
    parties: int
    opens_operands: bool
    local_truncation: bool
    private_weights: bool
    lanes: int
    count_name: str
    trust: str

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of its parties, by rank."""
        return ROLES[:self.parties]

    @property
    def components(self) -> int:
        """Ring elements that a party holds of every shared value: all but one of those whose sum is the value."""
        return self.parties - 1

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The ranks of every two parties, the lower one first."""
        return tuple(combinations(range(self.parties), 2))


_PUBLIC = ("Public to all parties: the architecture, which pixels kept a ReLU, the polynomial coefficients, sizes and "
           "timing. Every party is assumed to follow the protocol.")
PLAIN_LINK = "The link is neither encrypted nor authenticated."
TLS_LINK = "All connections are encrypted, and each party accepts the certificate of the other alone."
ENGINES = {
    "spu-semi2k": Engine(
        "spu-semi2k", "SEMI2K", parties=2, opens_operands=True, local_truncation=True, private_weights=False,
        lanes=2, count_name="rounds",
        trust="The server deals the multiplication triples and could work out the client's image from them: this is "
              "the price of the online part, NOT a secure deployment (that needs a third party as dealer). Making and "
              f"distributing triples is not counted. {_PUBLIC}"),
    "spu-cheetah": Engine(
        "spu-cheetah", "CHEETAH", parties=2, opens_operands=False, local_truncation=False, private_weights=True,
        lanes=1, count_name="messages",
        trust="No dealer: two parties and nobody else, from lattice encryption and oblivious transfer. The client "
              f"learns the logits, the server learns nothing. {_PUBLIC}"),
    "spu-aby3": Engine(
        "spu-aby3", "ABY3", parties=3, opens_operands=False, local_truncation=False, private_weights=False,
        lanes=2, count_name="rounds",
        trust="Three parties, no two of which collude: any two together know the image and the weights. No dealer and "
              "no offline phase. The helper has neither weights nor images; the client learns the logits, server and "
              f"helper learn nothing. {_PUBLIC}"),
}


@dataclass(frozen=True)
class Network:
    """A link: one-way delay [ms] and bandwidth in each direction [Mbit/s]; loopback is not shaped."""

    name: str
    delay_ms: float = 0.0
    mbit: float = float("inf")

    @property
    def shaped(self) -> bool:
        """Whether traffic has to go through a shaping proxy."""
        return self.name != "loopback"

    def __str__(self) -> str:
        return f"{self.name} ({self.delay_ms:g} ms one way, {self.mbit:g} Mbit/s)" if self.shaped else "loopback"


_NETWORKS = {"loopback": Network("loopback"), "lan": Network("lan", 1.0, 1000.0), "wan": Network("wan", 10.0, 200.0)}


def parse_network(text: str) -> Network:
    """A network by name or as DELAY_MS:MBIT.

    Raises:
        ValueError: neither.
    """
    if text in _NETWORKS:
        return _NETWORKS[text]
    try:
        delay_ms, mbit = map(float, text.split(":"))
    except ValueError:
        delay_ms = mbit = -1.0
    if not (0 <= delay_ms <= 10_000 and 1e-3 <= mbit <= 1e6):
        raise ValueError(f"invalid net={text!r}: expected loopback, lan, wan, or DELAY_MS:MBIT such as 25:100, at most "
                         "10,000 ms and from 0.001 to 1,000,000 Mbit/s")
    return Network(text, delay_ms, mbit)


def find_engine(name: str) -> Engine:
    """An engine by name; ValueError otherwise."""
    if name not in ENGINES:
        raise ValueError(f"invalid engine={name!r}: expected one of {', '.join(ENGINES)}")
    return ENGINES[name]
