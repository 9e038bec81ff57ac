"""What looks after the project's environments; no part of what is installed."""
