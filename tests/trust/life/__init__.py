"""What happens to a model over time."""
