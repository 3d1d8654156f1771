"""Trainables: implementations of `autotune.trial.trainable.Trainable`, which runs one trial."""
