"""A pytest plugin for compute-sanitizer: CuPy allocates each array by itself, so that a stray access is seen."""

from __future__ import annotations

import cupy

cupy.cuda.set_allocator(None)
