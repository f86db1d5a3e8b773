"""Readers of checkpoints: every format, and what is not one."""
