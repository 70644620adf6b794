"""HTTP: the REST interface, its description, log-in, and the pages."""
