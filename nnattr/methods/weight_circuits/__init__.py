"""What heads are wired to do, read off their weights."""
