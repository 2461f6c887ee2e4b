"""What each command of ``nearfield`` does, one module per command; imported only when it runs."""
