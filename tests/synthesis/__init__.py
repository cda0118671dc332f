"""What writes the responses."""
