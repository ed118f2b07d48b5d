#!/usr/bin/env bash
# SciPy's L-BFGS-B in its rewrite in C hands products of small matrices to a BLAS that takes a thread
# a core. On a machine whose cores are busy with other work, a chain of them say, these threads wait
# for each other at every one, and a softmax regression of 165 parameters on 25 rows takes more than
# ten times as long as on one BLAS thread. The Fortran of SciPy 1.14 took the same time either way.
#
# Expected: on busy cores the minimiser takes no longer by default than on one BLAS thread.
# Seen:     SciPy 1.17.1: 5.6 s by default, 0.2 s on one thread; SciPy 1.14.1: 0.4 s and 0.4 s
#           (sixty fits on two cores that two other processes keep busy).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/fits.py" <<'PYTHON'
import multiprocessing
import os
import time

import numpy as np
import scipy
from scipy.optimize import minimize

features = np.random.default_rng(0).standard_normal((25, 32))
labels = np.eye(5)[np.arange(25) % 5]


def loss(flat):
    weights = flat.reshape(33, 5)
    logits = features @ weights[:32] + weights[32]
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    p = shifted / shifted.sum(1, keepdims=True)
    slope = (p - labels) / 25
    gradient = np.concatenate([features.T @ slope + weights[:32] / 25, slope.sum(0, keepdims=True)])
    value = -np.log((p * labels).sum(1)).mean() + (weights[:32] ** 2).sum() / 50
    return value, gradient.ravel()


def fit():
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}
    return minimize(loss, np.zeros(165), jac=True, method="L-BFGS-B", options=options)


def busy():
    while True:
        pass


if __name__ == "__main__":
    fit()
    others = [multiprocessing.Process(target=busy, daemon=True) for _ in range(os.cpu_count())]
    for other in others:
        other.start()
    time.sleep(0.5)
    begun = time.perf_counter()
    for _ in range(60):
        fit()
    print(f"{time.perf_counter() - begun:.2f}")
PYTHON

ratio() { # of the seconds by default to those on one BLAS thread
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet --disable-pip-version-check "scipy==$1" "numpy==$2"
    default=$("$folder/$1/bin/python" "$folder/fits.py")
    one=$(OPENBLAS_NUM_THREADS=1 "$folder/$1/bin/python" "$folder/fits.py")
    echo "SciPy $1: $default s by default, $one s on one BLAS thread" >&2
    python3 -c "print(int($default > 3 * $one))"
}

unset OMP_NUM_THREADS OPENBLAS_NUM_THREADS
echo "expected: no longer by default than on one BLAS thread, of either version"
echo "seen, on $(nproc) cores:"
[ "$(ratio 1.17.1 2.4.6)" = 1 ] || { echo "changed: 1.17.1 takes no longer by default"; exit 1; }
[ "$(ratio 1.14.1 1.26.4)" = 0 ] || { echo "changed: 1.14.1 takes longer by default"; exit 1; }
echo "as described"
