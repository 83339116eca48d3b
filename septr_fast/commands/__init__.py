"""The command line, one thin file for each command; it may import everything, and nothing imports it."""
