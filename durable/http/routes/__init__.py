"""The routes of the HTTP runtime, by what they are about."""
