"""Random programs by one call at the defaults: how many answers are right, doubted, or wrong.

    OMP_NUM_THREADS=1 python benchmarks/honesty.py [--first 0] [--last 200] [--lines FILE]
        [--output results/honesty.txt]

The programs are those of `tests/cases/random_programs.py`, and wrong is what
`tests/statistical/test_honesty.py` calls so. A program takes a few seconds; each is one line of
FILE, and those that are there are passed over, so that the work may be done in pieces.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch
from printed import add_output, show

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

KINDS = ("right", "right and doubted", "said to be wrong", "silently wrong")


def table(lines: list[dict[str, str]]) -> str:
    counts = Counter((line["shape"], line["kind"]) for line in lines)
    total = Counter(line["kind"] for line in lines)
    rows = [f"{len(lines)} random programs, one call each at the defaults", ""]
    rows.append(f"{'shape':16}" + "".join(f"{kind:>20}" for kind in KINDS))
    for shape in sorted({line["shape"] for line in lines}):
        rows.append(f"{shape:16}" + "".join(f"{counts[shape, kind] or '':>20}" for kind in KINDS))
    rows.append(f"{'in all':16}" + "".join(f"{total[kind]:>20}" for kind in KINDS))
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=200, help="the first that is left out")
    parser.add_argument("--lines", type=Path, default=Path("build/honesty.jsonl"))
    add_output(parser)
    given = parser.parse_args()
    from cases.honest import examine

    torch.set_num_threads(1)
    given.lines.parent.mkdir(parents=True, exist_ok=True)
    given.lines.touch()
    lines = [json.loads(line) for line in given.lines.read_text().splitlines()]
    done = {line["number"] for line in lines}
    with given.lines.open("a") as file:
        for number in range(given.first, given.last):
            if number in done:
                continue
            found = examine(number)
            lines.append({"number": number, "kind": found.kind, **found._asdict()})
            print(json.dumps(lines[-1]), file=file, flush=True)
    show(table(lines), given.output)


if __name__ == "__main__":
    main()
