"""Reads from the text of a compiled program what it launches."""

import dataclasses
import itertools
import re

# Instructions that become kernels; the others are views, constants and control flow.
LAUNCHED = {
    "fusion", "custom-call", "copy", "dot", "convolution", "dynamic-slice", "dynamic-update-slice", "reduce", "scatter",
    "gather", "transpose", "concatenate", "convert", "broadcast", "sort",
}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Figures of a part of a program, or of all of it.

    Attributes:
        launches: kernels.
        cycles: the compiler's estimate (TPU; 0 elsewhere).
        collectives: operations between devices.
    """

    launches: int = 0
    cycles: int = 0
    collectives: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        """Adds the figures up."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Counts(*(a + b for a, b in pairs))

    def __mul__(self, times: int) -> "Counts":
        """Returns the figures of a loop that runs so many times."""
        return Counts(*(figure * times for figure in dataclasses.astuple(self)))


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop: how often it runs (None where the program does not say), one trip of it, and the loops inside."""

    trips: int | None
    body: Counts
    inner: tuple["Loop", ...]

    def one_trip(self) -> Counts:
        """Returns the figures of one trip, with all trips of the loops inside it.

        Raises:
            ValueError: a loop inside does not say how often it runs.
        """
        total = self.body
        for loop in self.inner:
            if loop.trips is None:
                raise ValueError("a loop inside does not say how often it runs")
            total += loop.one_trip() * loop.trips
        return total

    def collectives_inside(self) -> int:
        """Counts the operations between devices in the loops inside this one, each once."""
        return sum(loop.body.collectives + loop.collectives_inside() for loop in self.inner)


def whole(hlo: str) -> Loop:
    """Reads a compiled program's text (`compiled.as_text()`) as a loop that runs once.

    Raises:
        ValueError: the text has no ENTRY computation.
    """
    bodies = _computations(hlo)
    entry = re.search(r"^ENTRY %?([\w.\-]+)", hlo, re.M)
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    name = entry.group(1)
    return Loop(1, _count(bodies[name]), tuple(_loops(bodies, name)))


def _loops(bodies: dict[str, list[str]], name: str) -> list[Loop]:
    found = []
    for line in bodies[name]:
        match = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
        if match:
            condition, body = match.groups()
            trips = _trips(line, bodies[condition])
            found.append(Loop(trips, _count(bodies[body]), tuple(_loops(bodies, body))))
    return found


def _trips(line: str, condition: list[str]) -> int | None:
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known.group(1))
    # Other compilers compare a counter with a constant; in all loops that JAX makes it starts at 0.
    limits = [match.group(1) for each in condition if (match := re.search(r" s32\[\]\S* constant\((\d+)\)", each))]
    return int(limits[0]) if len(limits) == 1 and any("direction=LT" in each for each in condition) else None


def _count(lines: list[str]) -> Counts:
    opcodes = [_opcode(line) for line in lines]
    return Counts(
        sum(opcode in LAUNCHED for opcode in opcodes),
        sum(int(cycles) for line in lines for cycles in re.findall(r'"estimated_cycles":"(\d+)"', line)),
        # An asynchronous operation is a pair, -start and -done.
        sum(opcode.startswith(COLLECTIVES) and not opcode.endswith("-done") for opcode in opcodes),
    )


def _computations(hlo: str) -> dict[str, list[str]]:
    pattern = r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}"
    return {match.group(1): match.group(2).splitlines() for match in re.finditer(pattern, hlo, re.S | re.M)}


def _opcode(line: str) -> str:
    """Returns the operation of `name = type operation(operands)`; a tuple's type has parentheses of its own."""
    _, found, right = line.partition(" = ")
    if not found:
        return ""
    end = right.find(" ")
    if right.startswith("("):
        depth = list(itertools.accumulate((character == "(") - (character == ")") for character in right))
        end = depth.index(0) + 1
    match = re.match(r" ([a-z][a-z\-]*)\(", right[end:])
    return match.group(1) if match else ""
