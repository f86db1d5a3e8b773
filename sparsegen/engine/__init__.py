"""The engine: what a run of a model is, and what outlives it.

`run` has features and runs, `memory` the canvases that stay, `journal` what an edit overwrote, `prepared` the weights
as a backend lays them out, `codebook` what depends on labels alone, `store` where canvases lie.
"""
