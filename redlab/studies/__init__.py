"""The comparisons behind the notebooks: many settings in, one tidy frame out. Start with `hashing`."""
