"""Wrong calls, by what is called."""
