"""A template and a text become token ids, each with the segment that it belongs to."""
