"""Models by name, and what is known of each."""
