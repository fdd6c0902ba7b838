"""One run, from the call to the history."""
