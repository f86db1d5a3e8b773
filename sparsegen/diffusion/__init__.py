"""Diffusion: noise schedules, samplers, and the settings that choose among them. NumPy alone.

A schedule owns its times, a sampler its options; both work on arrays and are independent of models.
"""

from . import samplers as samplers  # which registers them
