"""Standard output and error of the commands: logging, closed pipes."""
