"""The operators: one folder per op, each with a reference, a native and a Triton file mirrored name by name.

`dispatch` says which backend runs what, `checks` holds the input checks, `status` the device status word and
`library` the registration with `torch.library`.
"""
