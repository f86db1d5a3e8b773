"""Tools: the cost of a model and of an edit, without running them."""
