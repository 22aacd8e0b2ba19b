"""``ENGINE = "raftsuite.engine"``: our backend, whose test databases are groups of several processes."""
