"""What is known about a user at an instant."""
