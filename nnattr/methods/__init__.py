"""Methods: one file per question a researcher asks."""
