"""What several suites share: adapter folders, and servers that run as processes of their own."""
