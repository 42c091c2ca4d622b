"""Floor 5: the three kinds of pass, planning, the pipeline, legality."""
