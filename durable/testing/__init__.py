"""What users of the library need in their own tests."""
