#!/usr/bin/env bash
# torch.logaddexp, the log-density of a mixture of two, has no second derivative in float32 once its
# arguments lie 89 nats apart: in the smaller one it is NaN, silently, since exp(89) is infinite.
# Value and first derivative are right, and so is torch.logsumexp of the same two numbers. Newton
# steps, Laplace approximations and Hessian-vector products of a mixture meet it as soon as one
# component is far away.
#
# Expected: d²/db² log(e^a + e^b) = p(1 − p) with p = 1/(1 + e^(a−b)), 2.3e-39 at a − b = 89.
# Seen:     torch 2.13.0: NaN at 89 and 100 nats, numbers at 40 and 80. logsumexp: numbers everywhere.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/second.py" <<'PYTHON'
import torch


def second_derivative(log_sum, apart):
    near, far = torch.zeros(()), torch.tensor(-float(apart), requires_grad=True)
    first, = torch.autograd.grad(log_sum(near, far), far, create_graph=True)
    return torch.autograd.grad(first, far)[0].item()


def by_logsumexp(a, b):
    return torch.logsumexp(torch.stack([a, b]), 0)


for apart in (40, 80, 89, 100):
    pair = second_derivative(torch.logaddexp, apart), second_derivative(by_logsumexp, apart)
    print(f"{apart} nats: {pair[0]:.1e} and {pair[1]:.1e}")
PYTHON
found=$("$folder/venv/bin/python" "$folder/second.py")
echo "expected: a number from both logaddexp and logsumexp"
echo "seen:     $(echo "$found" | paste -sd ';' -)"
[ "$(echo "$found" | grep -c ': nan and [0-9]')" = 2 ] || { echo "changed"; exit 1; }
[ "$(echo "$found" | grep -c ': [0-9].* and [0-9]')" = 2 ] || { echo "changed"; exit 1; }
echo "as described"
