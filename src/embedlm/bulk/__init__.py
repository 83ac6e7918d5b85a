"""Files and folders of texts become files of vectors."""

from embedlm.bulk.files import Encoded, encode_file
from embedlm.bulk.folders import encode_folder

__all__ = ["Encoded", "encode_file", "encode_folder"]
