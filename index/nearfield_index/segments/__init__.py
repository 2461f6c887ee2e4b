"""What is searched: immutable segments, the mutable tail, and the view one query reads."""
