"""What a node runs once its inputs are checked."""
