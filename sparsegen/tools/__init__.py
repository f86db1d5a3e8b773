"""Tools: what a model and an edit cost, without running them; and whether a model is what it is in PyTorch."""
