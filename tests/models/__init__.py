"""Models against PyTorch, and what is true of every one."""
