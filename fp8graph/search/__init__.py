"""Floor 8: loops over plans. What measures and judges them is an argument; nothing here knows a runner or a target."""
