"""CUDA kernels on a CPU: the backend and its kernels held to the contract without a card."""
