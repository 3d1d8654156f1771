"""A short, real DeepSpeed training of a decoder under one layout.

Importing this package imports neither torch nor DeepSpeed, so the actor that owns a node uses
little memory.
"""
