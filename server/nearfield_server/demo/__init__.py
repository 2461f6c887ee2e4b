"""What ``nearfield demo`` loads, asks, checks and prints. DATA.md beside this file describes the data."""
