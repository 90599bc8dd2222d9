"""How setup.py finds compilers and libraries, and compiles with them."""
