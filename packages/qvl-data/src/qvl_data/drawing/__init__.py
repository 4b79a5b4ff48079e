"""What commands that draw pictures have in common: prompts, calls from Python, and files."""
