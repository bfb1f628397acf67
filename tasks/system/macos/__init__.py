"""macOS alone: its process table, exits, free space, and the trials of what mlxq assumes about it.

Each module begins with `assert sys.platform == "darwin"`: pyright checks it as Darwin, and the tests run it on a
simulated kernel (tests/support/macos.py).
"""
