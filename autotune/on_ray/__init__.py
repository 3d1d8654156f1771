"""All code that imports Ray: cluster connection, nodes, placement groups, Ray Tune loop."""
