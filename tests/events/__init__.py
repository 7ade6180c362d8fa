"""Events: from a stored change to what is published of it."""
