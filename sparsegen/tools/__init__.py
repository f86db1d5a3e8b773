"""Instruments: what a model and an edit cost, without running them."""
