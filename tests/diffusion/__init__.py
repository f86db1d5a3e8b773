"""Schedules and samplers."""
