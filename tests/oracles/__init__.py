"""What results are held against: the networks in PyTorch, and layers in the plainest NumPy. Benchmarks use them too."""
