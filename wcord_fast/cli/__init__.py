"""The command `wcord-fast`: from what a user typed to runs of `wcord_fast.train`.

`main` answers help and finds the command; each command is the `run` of the module of its name.
"""
