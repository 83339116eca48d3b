"""What is shipped and what it is built from."""
