"""The fleet on the command line: how its nodes are shown, and the commands that another node carries out."""
