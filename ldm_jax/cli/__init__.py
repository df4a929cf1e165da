"""The commands: flags to a request, one library call, printed results."""
