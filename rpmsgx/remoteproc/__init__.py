"""Boots, attaches, recovers and dumps a remote core."""
