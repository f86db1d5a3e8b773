"""Tiles, masks and policies."""
