"""Recipes and plans as data: pydantic models that need no torch."""
