"""The passes over all weights: compiled where numba is installed, numpy otherwise, with the same answers.

Hashing ResNet-50's 25.5 M weights takes several times as long without numba; ``make bench`` measures it.
"""

try:
    from redlab.hashing.passes_numba import assort, bin_cubic, deviation, quartiles, smooth, sums, take
except (ImportError, RuntimeError):  # numba raises RuntimeError where it has nowhere to cache
    from redlab.hashing.passes_numpy import assort, bin_cubic, deviation, quartiles, smooth, sums, take

__all__ = ["assort", "bin_cubic", "deviation", "quartiles", "smooth", "sums", "take"]
