"""What each training learns: its samples, its losses and its contact sheet."""
