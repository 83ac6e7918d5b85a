"""The routes of a server, a file for each interface that they speak."""
