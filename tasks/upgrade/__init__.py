"""Another version of mlxq is installed beside this one, tried on a copy, taken into use, and taken back when it fails.

record.py        how far it is, in a file that both versions read
installation.py  where this mlxq is installed, and which version is used in its place
packages.py      finds a version in the package index and makes its environment
trial.py         serves the built-in model with the new version, on a copy of the home
switch.py        the job: what happens when, and in which of the two workers
back.py          the way back, and the guard that goes it when the new version does not come up
"""
