"""How queries are planned and run, one or many."""
