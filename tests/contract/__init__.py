"""One suite for the fake server and a real vLLM: where they differ, it fails."""
