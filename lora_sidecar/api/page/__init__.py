"""The status page: a document rendered for people."""
