"""Show the results, as an HTML report and as printed tables."""
