"""The intermediate representations: expressions, L1 attention, L2 tile program, L3 schedule."""
