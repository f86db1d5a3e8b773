"""Training of the built-in landscape generator: painter, network, training and export scripts."""
