"""Editing: a model's canvases are painted once and repainted where an edit changed them.

`session` is the door for users.
"""
