"""Recipes: pydantic models written in YAML and overridden on the command line."""
