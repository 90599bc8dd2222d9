"""Training over ranks side by side; `python -m bench.ranks`."""
