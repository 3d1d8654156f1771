"""State of a search: which trial runs next, what is recorded, when it ends. Free of Ray."""
