"""What every job builds on: passes, what goes into them and what is read. All of it travels."""
