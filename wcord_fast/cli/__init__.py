"""The command `wcord-fast`: it turns a command line into runs of `wcord_fast.train`.

`main` prints help or finds the command; a command is the function `run` of the module of its name.
"""
