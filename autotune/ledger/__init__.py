"""The life of a search, without Ray."""
