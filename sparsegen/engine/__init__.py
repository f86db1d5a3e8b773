"""The engine: one run of a model, and the memory that outlives it.

`run`: runs. `feature`: what layers pass on. `memory`: the canvases that stay. `scratch`: layers without one. `journal`:
the tiles that an edit overwrote. `prepared`: the weights in a backend's layout. `codebook`: values that depend on
labels alone. `store`: canvases in RAM and files.
"""
