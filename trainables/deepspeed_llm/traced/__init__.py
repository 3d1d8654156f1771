"""Runs the real code of a rank of any layout without devices, and counts what it does.

Model, DeepSpeed engine and optimiser are the ones of a trial. Tensors have a shape and no values
(torch's FakeTensorMode), and collectives return at once (torch's fake process group), so one core
traces a rank of a thousand. Nothing is timed: what is counted is memory, collectives, FLOPs and
operations.
"""
