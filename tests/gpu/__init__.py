"""What only a GPU can show. `python -m tests.gpu`, or pytest; the same code runs on the CPU, tiny, in every suite.

Needs torch, lightning, timm, torchmetrics, matplotlib and tensorboard: what an image of PyTorch has or takes quickly.
"""

import os

import benchmarks.bare_image  # noqa: F401  (before anything of the package: stands in for what may be missing)

# Deterministic matrix products of CUDA: read once, when the first one is made.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
