"""What `dev.py` does, for developers only: nothing here is shipped to users of the node pack."""
