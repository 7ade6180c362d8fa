"""What users of this package need to test their own sources: real servers on loopback, no Docker."""
