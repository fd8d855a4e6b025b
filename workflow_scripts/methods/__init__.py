"""Attribution methods, one module each, and the modules that they share. `study/methods.py` lists them."""
