"""Tiles: a difference mask comes in, the active tiles of every layer come out. NumPy alone.

`tiles` are sets of tiles of one canvas, `windows` what a layer reads of them, `masks` the pyramid of difference masks,
`policies` the choice of active tiles.
"""
