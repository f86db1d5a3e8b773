"""Every backend held to the contract, and what is Numba's own."""
