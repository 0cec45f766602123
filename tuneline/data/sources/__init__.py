"""Sources of rows: what a config names is resolved to files, identified, and read row by row."""
