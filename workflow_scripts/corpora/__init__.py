"""From files of any usual shape to tables of prompts and responses."""
