"""Reading and writing model folders in every layout the field uses."""

from embedlm.persistence.hub import layout_folder
from embedlm.persistence.read import derive_recipe
from embedlm.persistence.systems import recognise
from embedlm.persistence.write import save

__all__ = ["derive_recipe", "layout_folder", "recognise", "save"]
