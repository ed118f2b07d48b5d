#!/usr/bin/env bash
# torch.distributions.LKJCholesky.sample draws from another law than log_prob's. Under LKJ(η) all
# correlations of D variables have one law, (1 + r)/2 ~ Beta(η − 1 + D/2, η − 1 + D/2), so that each
# has the sd 1/√(2η + D − 1) (Lewandowski, Kurowicka & Joe 2009, J. Multivariate Analysis 100,
# section 3.2). From three variables on, torch's draws have it between the first two alone: its onion
# method takes Beta(i − 1/2, ·) for the squared length of row i, where i/2 belongs. Whoever simulates
# from a prior (prior predictive checks, simulation-based calibration, reference draws) is misled,
# in Pyro as well, whose LKJCholesky and LKJ are torch's; whoever samples by log_prob is not.
#
# Expected: at D = 3, η = 1 the sd 0.5 of each of three correlations, at D = 4 0.447 of each of six.
# Seen:     torch 2.13.0, pyro-ppl 1.9.1, 200,000 draws: 0.50 of the first, 0.55 of the two others;
#           0.45 of the first, 0.49 to 0.50 of the five others.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 pyro-ppl==1.9.1
cat > "$folder/spread.py" <<'PYTHON'
import torch
import pyro.distributions as dist

torch.manual_seed(0)
for size in (3, 4):
    factor = dist.LKJCholesky(size, torch.tensor(1.0)).sample((200_000,))
    correlation = factor @ factor.mT
    seen = [f"{correlation[:, i, j].std():.2f}" for i in range(size) for j in range(i)]
    print(f"D = {size}: {(1 / (size + 1)) ** 0.5:.2f} expected, seen", *seen)
PYTHON
found=$("$folder/venv/bin/python" "$folder/spread.py")
echo "$found"
[ "$(echo "$found" | grep -c '^D = 3: 0.50 expected, seen 0.50 0.55 0.55$')" = 1 ] || { echo "changed"; exit 1; }
[ "$(echo "$found" | grep -cE '^D = 4: 0.45 expected, seen 0.45( 0.(49|50)){5}$')" = 1 ] || { echo "changed"; exit 1; }
echo "as described"
