"""Files that other programs run. Empty so far."""
