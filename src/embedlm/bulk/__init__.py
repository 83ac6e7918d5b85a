"""Files and folders of texts become files of vectors."""
