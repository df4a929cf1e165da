"""A web page and an HTTP API over one `Pipeline` (extra `web`)."""
