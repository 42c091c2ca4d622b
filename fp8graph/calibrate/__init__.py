"""Floor 7: reading data and observing tensors."""
