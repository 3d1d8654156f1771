"""Everything that imports Ray: the cluster, its nodes, placement groups and the Tune loop."""
