"""What a step sends where several ranks run one chain: on paper, for float32 and a ring.

    python benchmarks/traffic.py [--output benchmarks/results/traffic.txt]

A rank sends 2(R - 1)/R times the bytes of what is summed, D + 2 numbers a chain, and receives as
many. Seconds are those bytes over the speed of the network, in one direction, without latency.
"""

from __future__ import annotations

import argparse

from printed import add_output, show

PARAMETERS = (10**6, 22_700_000, 10**8, 10**9)
RANKS = (2, 4, 8)
SPEEDS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9, "NVLink, 450 GB/s": 450e9}


def sent(num_parameters: int, count: int, num_chains: int = 1) -> float:
    """Bytes that a rank sends in a step.

    Example:
        >>> sent(998, 2)
        4000.0
    """
    return 2 * (count - 1) / count * 4 * num_chains * (num_parameters + 2)


def report() -> str:
    head = f"{'parameters':>14}{'ranks':>7}{'MB sent':>10}"
    lines = [head + "".join(f"{f's at {name}':>24}" for name in SPEEDS)]
    for size in PARAMETERS:
        for count in RANKS:
            number = sent(size, count)
            cells = "".join(f"{number / speed:24.4f}" for speed in SPEEDS.values())
            lines.append(f"{size:14,}{count:7}{number / 1e6:10.0f}{cells}")
    return "\n".join(["One chain, float32, a step and rank", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_output(parser)
    show(report(), parser.parse_args().output)


if __name__ == "__main__":
    main()
