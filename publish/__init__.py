"""What leaves: assignments, and the destinations that they go to."""
