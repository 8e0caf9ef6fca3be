"""Pruning criteria, one a file. Start with `magnitude`; `registry` lists them all."""
