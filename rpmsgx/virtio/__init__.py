"""Rings, features, status and the resource table; transports that say where the rings live."""
