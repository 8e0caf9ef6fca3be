"""Score, select, compensate: channels and weights are removed, at once or in rounds. Start with `scores`."""
