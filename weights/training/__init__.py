"""Training of the built-in models: painter, networks, training and export scripts. Not in the installed package."""
