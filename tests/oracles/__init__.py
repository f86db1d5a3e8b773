"""What results are held against: the models in PyTorch, and layers in the plainest NumPy. Benchmarks use them too."""
