"""Reading and writing model folders in every layout the field uses."""

from embedlm.persistence.card import Card
from embedlm.persistence.hub import layout_folder, network_config, network_place
from embedlm.persistence.published import recognise
from embedlm.persistence.push import push
from embedlm.persistence.read import check_width, derive_recipe, own_recipe
from embedlm.persistence.write import save

__all__ = [
    "Card",
    "check_width",
    "derive_recipe",
    "layout_folder",
    "network_config",
    "network_place",
    "own_recipe",
    "push",
    "recognise",
    "save",
]
