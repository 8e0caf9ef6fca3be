"""What other tools have, checked by running them: ``python -m benchmarks.peers``."""
