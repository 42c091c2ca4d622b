"""Numbers that came with a model from elsewhere: checkpoints in FP8, and the scales in them."""
