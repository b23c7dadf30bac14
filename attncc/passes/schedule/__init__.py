"""Passes over L3. One file for each; `attncc.pipeline` lists them for each target."""
