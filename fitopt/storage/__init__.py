"""What goes to disk."""
