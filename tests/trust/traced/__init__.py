"""What launches touch."""
