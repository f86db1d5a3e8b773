"""The CUDA backend: raw kernels for NVIDIA cards, compiled by NVRTC and launched through CuPy, without cuBLAS or cuDNN.

Read `kernels/kernel.cuh` and `kernels/reading.cuh` first, then `kernels/winograd.cu`: each kernel stands beside the
formula that it computes. `sources.py` reads what they take, `compile.py` compiles them; `launching.py` packs arguments
and launches on a `Device` (`device.py`), `convolutions.py`, `tiles.py` and their like are the primitives,
`recording.py` replays a run as one CUDA graph, `watching.py` finds what is not finite. `card.py` is the device that
CuPy gives, with `staging.py` for copies; `presence.py` finds it, or says what is missing.
"""
