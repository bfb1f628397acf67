"""The page: all that mlxq knows, live in a browser. A process of its own, off the path of gateway and engines."""
