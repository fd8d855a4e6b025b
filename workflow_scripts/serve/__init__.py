"""A local page and a JSON API that answer which training examples help or harm an answer."""
