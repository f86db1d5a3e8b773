"""Edits replayed as one graph: the same bits as computed layer by layer, one launch of a graph, one wait."""

from __future__ import annotations
