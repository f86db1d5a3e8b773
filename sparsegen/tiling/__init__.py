"""Tiles: a difference mask comes in, the active tiles of every layer come out. NumPy alone.

`tiles`: sets of tiles of one canvas. `windows`: the input pixels that a layer reads. `masks`: the pyramid of difference
masks. `policies`: the choice of active tiles.
"""
