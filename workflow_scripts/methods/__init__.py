"""Attribution methods: a module each, and what they share. The list of them is `study/methods.py`."""
