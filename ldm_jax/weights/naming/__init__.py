"""Tables of parameter names and array layouts, and their application."""
