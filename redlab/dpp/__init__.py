"""DPP (dynamic probabilistic pruning): masks of exactly k of n that learn. Start with `sparsifying`.

Gonzalez-Carabarin et al., "Dynamic Probabilistic Pruning: A general framework for hardware-constrained pruning at
different granularities" (arXiv 2105.12686). No line of the authors' code is used, and where it differs from the paper's
intent (temperature that never falls, noise at test time, reshaped masks) this follows the intent.
"""
