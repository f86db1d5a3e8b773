"""Sessions: editing, undo, files."""
