"""Which channels must go together, and how they are removed. Start with `coupling`."""
