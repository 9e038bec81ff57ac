"""What a request through the control port means, and when it is answered."""
