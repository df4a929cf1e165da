"""Foreign weight files: containers and name tables, in numpy alone."""
