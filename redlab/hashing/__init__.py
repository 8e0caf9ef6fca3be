"""Weights to few values: density estimates, hash rules and codebooks. Start with `weights`."""
