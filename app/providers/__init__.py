"""Ways to reach models. ``base`` is the contract, ``registry`` finds implementations, the rest are implementations."""
