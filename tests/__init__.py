"""Tests by area; what is true of the engine, held."""
