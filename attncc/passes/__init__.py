"""Transformations of one IR level: each file is one pass, a function from program to program."""
