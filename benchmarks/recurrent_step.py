"""What a step of a recurrent network costs: the network of `mhc.py`, at 25 peptides.

    OMP_NUM_THREADS=1 python benchmarks/recurrent_step.py [--chains 4 32] [--output results/...]

26,241 random weights, an LSTM of 64 units over 15 letters, its loop unrolled in the graph. BAOAB on
all 25 peptides, at a step size by hand; milliseconds a chain and step by the `sampling_time` that
`fe.sample` reports, so without tracing and compiling, whose processor seconds stand beside it.
"""

from __future__ import annotations

import argparse
import os
import warnings

import torch
from mhc import Binder, affinity, encode
from printed import add_output, show, torch_and_load
from processor_time import processor_seconds

import ppl_fe as fe
from ppl_fe.inference.step.compile import CompileMode

NUM_PEPTIDES, PEPTIDE = 25, "SIINFEKLA"
STEPS = 20


def measure(num_chains: int, mode: CompileMode) -> tuple[float, float]:
    """Milliseconds a chain and step, and processor seconds of all that comes before the steps."""
    torch.manual_seed(0)
    network = fe.FlatNetwork(Binder())
    weights = {
        name: 0.2 * torch.randn(shape)
        for name, shape in zip(network.names, network.shapes, strict=True)
    }
    program = fe.models.local_posterior(network.with_state(weights), affinity, 100.0, 1.0, None)
    kernel = fe.BAOAB(program, step_size=1e-4, friction=1.0)
    data = encode([PEPTIDE] * NUM_PEPTIDES), torch.rand(NUM_PEPTIDES)
    begun = processor_seconds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # too short a run to be an answer
        draws = fe.sample(
            kernel,
            *data,
            num_chains=num_chains,
            num_samples=STEPS,
            warmup_steps=2,
            compile=mode,
            progress_bar=False,
        )
    spent, sampling = processor_seconds() - begun, float(draws.attrs["sampling_time"])
    return 1e3 * sampling / STEPS / num_chains, spent - sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chains", type=int, nargs="+", default=[4, 32])
    add_output(parser)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    rows = []
    for num_chains in given.chains:
        for mode in ("traced", "compiled"):
            each, before = measure(num_chains, mode)
            rows.append(f"{num_chains:6}  {mode:10}{each:24.2f}{before:18.1f}")
    lines = [
        "Milliseconds a chain and step of an LSTM of 26,241 weights at 25 peptides",
        torch_and_load(load),
        "",
        f"{'chains':>6}  {'mode':10}{'ms a chain and step':>24}{'s before that':>18}",
        *rows,
    ]
    show("\n".join(lines), given.output)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
