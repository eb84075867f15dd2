"""What is held in each kind of torch function, one file per kind."""
