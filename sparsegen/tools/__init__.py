"""Instruments: what a network and an edit cost, without running them."""
