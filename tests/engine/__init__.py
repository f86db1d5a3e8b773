"""Runs, memories, stores and turns."""
