"""A short, real DeepSpeed training of a Llama under one layout.

Importing this package imports neither torch nor DeepSpeed: the owner of a node stays small.
"""
