"""Everything that a machine with a GPU is asked for: ``python -m bench.gpu --out DIR``."""
