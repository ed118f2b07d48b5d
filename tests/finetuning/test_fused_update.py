"""The step over blocks is the sampler's own step, with the counter's normals, in any precision."""

from __future__ import annotations

import pytest
import torch

from ppl_fe.finetuning.bayestune import proximal_step as proximal
from ppl_fe.finetuning.bayestune.at_scale.counter_rng import KEYS, draw_keys, normals
from ppl_fe.finetuning.bayestune.at_scale.fused_update import NOISE_DTYPE, FusedUpdate
from ppl_fe.finetuning.bayestune.offsets import Offsets
from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior
from ppl_fe.finetuning.flat_gradient import GradientParts
from ppl_fe.inference.step.compile import CompileMode, build

SIZE, WIDTH, DATA_SIZE, STEP_SIZE = 50, 32, 300.0, 1e-4


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        pytest.param(torch.float32, "compiled", marks=pytest.mark.thorough),
        (torch.float32, "traced"),
        (torch.bfloat16, "traced"),
        pytest.param(torch.float64, "traced", marks=pytest.mark.thorough),
    ],
)
def test_a_step_is_that_of_the_sampler(dtype: torch.dtype, mode: CompileMode) -> None:
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    moved = 0.02 * torch.randn(SIZE)
    anchor, weights = torch.randn(SIZE, dtype=dtype), torch.zeros(2 * WIDTH, dtype=dtype)
    offsets = Offsets(anchor, weights, WIDTH)
    offset = offsets.values
    assert offset.dtype == wide
    offset[:SIZE] = moved
    # Of tensors that do not end where blocks do; weights 45 to 49 have no gradient.
    parts = [(slice(0, 40), torch.randn(40)), (slice(40, 45), torch.randn(5))]
    gradient = GradientParts([(place, part.to(dtype)) for place, part in parts])
    update = FusedUpdate(
        ScalePosterior(alpha=0.01, beta=100.0, dtype=wide),
        DATA_SIZE,
        offsets,
        lambda function, example: build(function, example, mode, 1000, fused=True).run,
    )
    for step_size in (STEP_SIZE, 2 * STEP_SIZE):  # the second takes the same functions
        variance = update.prepare(step_size)
        noise = torch.full((2 * WIDTH,), variance**0.5).to(NOISE_DTYPE)
        keys = draw_keys(torch.empty(2, KEYS, dtype=torch.int32), torch.Generator().manual_seed(1))
        pairs = [torch.stack(normals(key, WIDTH)) for key in keys]
        ahead = torch.zeros(2 * WIDTH)
        gradient.write_to(ahead)
        settings = proximal.prepare(update.scales, step_size)
        expected = proximal.step(
            offset.clone(),
            -DATA_SIZE * ahead.to(wide),
            torch.cat(pairs, 1).to(wide),
            settings._replace(noise_sd=noise.to(wide)),
        )
        update(gradient, noise, torch.Generator().manual_seed(1))
        # Compiled, a mean may round to the next cell of the lattice: one weight is let off.
        same = torch.isclose(offset, expected, rtol=2e-3, atol=1e-7)
        assert (~same).sum() <= (mode == "compiled")
        assert torch.equal(weights[:SIZE], (anchor + offset[:SIZE]).to(dtype))
    assert offset.abs().max() > 1e-3
